"""onnxruntime: threads of a session, and optimised models kept from one run to the next.

A session takes most of its time to parse protobuf, optimise the graph and copy the weights. Kept is the
optimised graph, with its weights in a file beside it that onnxruntime maps: no parsing, no copying, and pages
shared by all who run the model. (Its own flatbuffer format and an optimised .onnx with the weights inside gain
little or nothing on large models.)

A session with one thread starts none: onnxruntime's pool has `intra_op_num_threads` - 1 of them.
"""

from __future__ import annotations

import functools
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from .intercept import Interception

VERSION = "1"  # of what is kept
LEAST_EXTERNAL = "1024"  # bytes of a weight that goes into the file beside the model
PAYS = 0.8  # of the plain time: a kept model that takes longer is thrown away
LOCAL = {"CPUExecutionProvider", "AzureExecutionProvider"}  # the second calls services, and optimises nothing


def patch_onnxruntime(ort: ModuleType, interception: Interception) -> None:
    Sessions(ort, interception).patch()


class Sessions:
    def __init__(self, ort: Any, interception: Interception) -> None:
        self._ort = ort
        self._interception = interception
        options = interception.options
        self._threads = int(options.get("threads") or 0)
        self._cache = str(options.get("cache") or "")
        self._write = bool(options.get("cache_write"))
        self._original = ort.InferenceSession.__init__

    def patch(self) -> None:
        if not (self._threads or self._cache):
            return
        original = self._original

        @functools.wraps(original)
        def init(session: Any, *args: Any, **kwargs: Any) -> None:
            path = self._cacheable(*args, **kwargs) if self._cache else ""
            if path and self._from_cache(session, path, *args, **kwargs):
                return
            self._pinned(session, args, kwargs)
            if path and self._write:
                self._keep(session, path)

        self._interception.replace(self._ort.InferenceSession, "__init__", init)

    def _note(self, outcome: str, reason: str = "") -> None:
        self._interception.note("onnxruntime", outcome, reason)

    # ---- threads ------------------------------------------------------------------------------------

    def _pinned(self, session: Any, args: tuple, kwargs: dict) -> None:
        """The caller's session, its threads pinned where the caller named none."""
        given = args[1] if len(args) > 1 else kwargs.get("sess_options")
        if not self._threads or (given is not None and not isinstance(given, self._ort.SessionOptions)):
            self._original(session, *args, **kwargs)
            return
        options = self._ort.SessionOptions() if given is None else given
        pools = getattr(options, "use_per_session_threads", True)
        before = options.intra_op_num_threads, options.inter_op_num_threads
        if before != (0, 0) or not pools:
            self._note("left", "threads named")
            self._original(session, *args, **kwargs)
            return
        if len(args) > 1:
            args = (args[0], options, *args[2:])
        else:
            kwargs = {**kwargs, "sess_options": options}
        options.intra_op_num_threads = options.inter_op_num_threads = self._threads
        try:
            self._original(session, *args, **kwargs)
        finally:
            if given is not None:  # the caller's own: he finds it as it was
                options.intra_op_num_threads, options.inter_op_num_threads = before
        self._note("pinned")

    # ---- kept models --------------------------------------------------------------------------------

    def _cacheable(
        self,
        path_or_bytes: object = None,
        sess_options: object = None,
        providers: Any = None,
        provider_options: object = None,
        **kwargs: object,
    ) -> str:
        """The model's path; "" where nothing can be kept: options that cannot be read back (overrides, custom
        operators), bytes, for which a digest takes longer than the whole session, other devices."""
        path = ""
        if not isinstance(path_or_bytes, (str, os.PathLike)):
            reason = "not a path"
        elif sess_options is not None or provider_options is not None or kwargs:
            reason = "options given"
        elif not set(providers or self._ort.get_available_providers()) <= LOCAL:
            reason = "other providers"
        else:
            path = os.fspath(path_or_bytes)
            reason = "" if path.endswith(".onnx") and self._interception.settled(path) else "may change"
        if reason:
            self._note("left", reason)
        return "" if reason else path

    def _place(self, path: str) -> str:
        """Where the model is kept: under all that its optimised form depends on."""
        import hashlib

        found = os.stat(path)
        ort = self._ort.__version__
        parts = VERSION, os.path.realpath(path), str(found.st_size), str(found.st_mtime_ns), ort, _processor()
        return os.path.join(self._cache, hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40])

    def _from_cache(self, session: Any, path: str, *args: Any, **kwargs: Any) -> bool:
        try:
            model = os.path.join(self._place(path), "model.onnx")
            if not os.path.exists(model):
                self._note("missed")
                return False
            self._open(session, model, args[2] if len(args) > 2 else kwargs.get("providers"))
        except Exception as error:  # noqa: BLE001  # whatever it is, the original model is there
            self._note("left", "failed: " + type(error).__name__)
            return False
        # What a session makes itself anew from (`set_providers`), and says about itself.
        session._model_path = path
        session._sess_options = session._sess_options_initial = self._fresh_options() if self._threads else None
        session._enable_fallback = True
        self._note("cached")
        return True

    def _fresh_options(self) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = self._threads
        return options

    def _open(self, session: Any, model: str, providers: Any) -> None:
        options = self._fresh_options()
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # No fallback: it would print to stdout and try again.
        self._original(session, model, options, providers, enable_fallback=0)

    def _keep(self, session: Any, path: str) -> None:
        """Write the optimised model, and leave it there only where it opens faster and says the same."""
        import shutil

        place = self._place(path)
        temporary = "%s.%d" % (place, os.getpid())
        providers = ["CPUExecutionProvider"]
        new = self._ort.InferenceSession.__new__
        try:
            os.makedirs(temporary)
            options = self._fresh_options()
            options.optimized_model_filepath = os.path.join(temporary, "model.onnx")
            for entry, value in (("file_name", "weights.bin"), ("min_size_in_bytes", LEAST_EXTERNAL)):
                options.add_session_config_entry("session.optimized_model_external_initializers_" + entry, value)
            options.log_severity_level = 4  # that the model suits this processor only is known
            self._original(new(self._ort.InferenceSession), path, options, providers)

            def plain() -> None:
                self._original(new(self._ort.InferenceSession), path, self._fresh_options(), providers)

            def kept() -> Any:
                opened = new(self._ort.InferenceSession)
                self._open(opened, os.path.join(temporary, "model.onnx"), providers)
                return opened

            if _told(kept()) != _told(session):
                self._note("left", "told otherwise")
            elif _quickest(kept) > PAYS * _quickest(plain):
                self._note("left", "would not pay")
            else:
                os.rename(temporary, place)
                self._note("kept")
        except Exception as error:  # noqa: BLE001  # the function has its session
            self._note("left", "not kept: " + type(error).__name__)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _told(session: Any) -> object:
    """What a session says of its model."""
    meta = session.get_modelmeta()
    nodes = [(node.name, node.type, node.shape) for node in (*session.get_inputs(), *session.get_outputs())]
    custom = sorted(meta.custom_metadata_map.items())
    return nodes, custom, meta.domain, meta.graph_name, meta.description, meta.producer_name, meta.version


def _quickest(call: Any) -> float:
    import time

    best = float("inf")
    for _ in range(3):
        began = time.monotonic()
        call()
        best = min(best, time.monotonic() - began)
    return best


def _processor() -> str:
    """What the layout of an optimised graph depends on: it names block sizes of the vector unit."""
    try:
        with open("/proc/cpuinfo", "rb") as file:
            head = file.read(8 << 10)
    except OSError:
        return ""
    lines = head.split(b"\n\n")[0].splitlines()
    keys = (b"flags", b"Features", b"model name", b"CPU part")
    return "|".join(line.decode("utf-8", "replace") for line in lines if line.startswith(keys))
