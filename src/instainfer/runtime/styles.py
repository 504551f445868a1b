"""The three ways to write a function: how each is recognised, loaded and called.

- module: the file loads at module level and has `handler(event)` or `main(args)`;
- class: `load(self)` once, `predict(self, payload)` per request;
- script: the file loads, blocks on `sys.stdin.readline()` and prints one line of JSON per request.

None of them needs a library of ours. `detect` never imports or runs anything and works in the platform's own
process; everything else runs in an instance.
"""

from __future__ import annotations

import builtins
import io
import os
import sys

from . import payloads

TYPE_CHECKING = False  # `typing` and `ast` are not worth their import time in every instance
if TYPE_CHECKING:
    import ast
    from collections.abc import Awaitable, Callable
    from types import ModuleType
    from typing import Any, NoReturn, TextIO

    from . import tensors
    from .instance import Session

MODULE = "module"
CLASS = "class"
SCRIPT = "script"


class Unusable(Exception):
    """The package is not what its entry says; the text is the whole story, for its author to read. `phase`
    is where that showed."""

    def __init__(self, text: str, phase: str = "import") -> None:
        super().__init__(text)
        self.phase = phase


# ---- recognising ----------------------------------------------------------------------------------------


def detect(source: str, filename: str = "main.py") -> tuple[str, str] | None:
    """(style, entry) of a file, from its syntax alone; None when it is none of the three, or is not Python
    that this interpreter can read.

    `def handler` comes first, then a script that reads stdin when it is merely imported (imported as
    anything else it would hang), then a class with `predict`, then a script that reads stdin under
    `if __name__ == "__main__"`, then `def main`.
    """
    import ast  # only the platform asks: an instance does without its import

    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    module = filename[:-3] if filename.endswith(".py") else filename
    module = module.replace("/", ".")
    functions = {node.name: node for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    guarded = [node for node in body if isinstance(node, ast.If) and "__name__" in ast.dump(node.test)]
    if "handler" in functions:
        return MODULE, module + ":handler"
    if _reads_stdin([node for node in body if node not in guarded], functions):
        return SCRIPT, filename
    model = _model_class([node for node in body if isinstance(node, ast.ClassDef)])
    if model:
        return CLASS, module + ":" + model
    if _reads_stdin(guarded, functions):
        return SCRIPT, filename
    if "main" in functions:
        return MODULE, module + ":main"
    return None


def _model_class(classes: list[ast.ClassDef]) -> str | None:
    """The class with `predict`, its own or inherited within the file: one that no other such class derives
    from, with `load` where there is a choice."""
    methods: dict[str, set[str]] = {}
    bases: set[str] = set()
    for node in classes:
        methods[node.name] = {name for item in node.body if (name := getattr(item, "name", ""))}
        for base in node.bases:
            name = getattr(base, "id", "")
            if name in methods:
                methods[node.name] |= methods[name]
                bases.add(name)
    found = [name for name, has in methods.items() if "predict" in has]
    last = [name for name in found if name not in bases] or found
    return next((name for name in last if "load" in methods[name]), last[0] if last else None)


def _reads_stdin(statements: list[Any], functions: dict[str, Any]) -> bool:
    """Whether running `statements` reads stdin, in themselves or in the file's functions they call."""
    import ast

    waiting: list[Any] = list(statements)
    seen: set[str] = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue  # defined, not run
        if isinstance(node, (ast.For, ast.AsyncFor)) and _is_stdin(node.iter):
            return True
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute) and called.attr == "readline" and _is_stdin(called.value):
                return True
            name = getattr(called, "id", "")
            if name == "input" and name not in functions:
                return True
            if name == "iter" and node.args and getattr(node.args[0], "attr", "") == "readline":
                return True  # for line in iter(sys.stdin.readline, ""):
            if name in functions and name not in seen:
                seen.add(name)
                waiting += functions[name].body
        waiting += ast.iter_child_nodes(node)
    return False


def _is_stdin(node: ast.expr) -> bool:
    """`sys.stdin`, or `stdin` imported from it."""
    return getattr(node, "attr", getattr(node, "id", "")) == "stdin"


# ---- module and class -----------------------------------------------------------------------------------


def load_module(entry: str, package: str) -> Callable[[Any], Any]:
    """Import the module and return its handler. Raises Unusable, or what the module raised."""
    module, name = import_entry(entry, package)
    return handler_of(module, name)


def handler_of(module: ModuleType, name: str) -> Callable[[Any], Any]:
    handler = _attribute(module, name)
    if not callable(handler) or isinstance(handler, type):
        raise Unusable("`%s` in %s is a %s, not a function" % (name, _file(module), type(handler).__name__))
    return handler  # type: ignore[no-any-return]  # callable() is all that can be known of it


def load_class(entry: str, package: str, wait: Callable[[Awaitable], Any]) -> Any:
    """Import the module, make one object of the class, call its `load` where it has one and return it: its
    `predict` is the function. Raises Unusable, or what the tenant's code raised."""
    module, name = import_entry(entry, package)
    model = _attribute(module, name)
    if not isinstance(model, type):
        raise Unusable("`%s` in %s is a %s, not a class" % (name, _file(module), type(model).__name__))
    if not callable(getattr(model, "predict", None)):
        methods = ", ".join(key for key, value in vars(model).items() if callable(value) and key[0] != "_")
        raise Unusable(
            "class `%s` in %s has no `predict(self, payload)`; it defines: %s"
            % (name, _file(module), methods or "no methods")
        )
    instance = model()
    load = getattr(instance, "load", None)
    if callable(load):
        done = load()
        if hasattr(done, "__await__"):
            wait(done)
    return instance


def import_entry(entry: str, package: str) -> tuple[ModuleType, str]:
    name, _, attribute = entry.partition(":")
    path = os.path.join(package, *name.split("."))
    before = sys.modules.get(name)
    __import__(name)  # import_module would show itself in the tenant's tracebacks
    module = sys.modules[name]
    if before is not None and os.path.exists(path + ".py") and not _file(module, full=True).startswith(path):
        raise Unusable("%s.py has the name of a module that Python itself has loaded; rename it" % name)
    return module, attribute


def is_within(module: ModuleType, package: str) -> bool:
    """Whether it is a module of the function's own."""
    return (getattr(module, "__file__", None) or "").startswith(os.path.join(package, ""))


def _attribute(module: ModuleType, name: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        own = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__ and key[0] != "_"
        ]
        raise Unusable(
            "no `%s` in %s; it defines: %s" % (name, _file(module), ", ".join(own[:10]) or "no functions")
        ) from None


def _file(module: ModuleType, full: bool = False) -> str:
    path = getattr(module, "__file__", None) or module.__name__
    return path if full else os.path.basename(path)


# ---- script ---------------------------------------------------------------------------------------------


def run_script(path: str, session: Session, params: dict) -> None:
    """Run the file as `__main__` in this thread until it ends. The session is asked for requests whenever
    the script reads from stdin, so the script's own loop is the serving loop."""
    module = type(sys)("__main__")
    module.__file__ = path
    vars(module)["__builtins__"] = builtins
    sys.modules["__main__"] = module
    stdout = sys.stdout
    answers = _Answers(stdout)
    stdin = _Requests(session, answers, params)
    sys.stdin, sys.stdout = stdin, answers
    try:
        with open(path, "rb") as file:
            code = compile(file.read(), path, "exec", dont_inherit=True)
        exec(code, vars(module))
    except BaseException as error:  # noqa: BLE001  # its end, however it came, is the instance's end
        stdin.ended(error)
    else:
        stdin.ended(None)
    finally:
        sys.stdout = stdout


class _Answers(io.TextIOBase):
    """sys.stdout of a script: the first line of JSON while a request runs is its answer, all other lines go
    on to the log."""

    def __init__(self, log: TextIO) -> None:
        self._log = log
        self._partial: list[str] = []
        self._wanted = False
        self._answer: str | None = None

    def want(self) -> None:
        self._wanted = True

    def take(self) -> str | None:
        """The answer since `want`; a last line without its end counts."""
        self._line("".join(self._partial), "")
        self._partial.clear()
        answer, self._answer, self._wanted = self._answer, None, False
        return answer

    def write(self, text: str) -> int:
        if not self._wanted:
            return self._log.write(text)
        head, newline, tail = text.partition("\n")
        while newline:
            self._partial.append(head)
            self._line("".join(self._partial), newline)
            self._partial.clear()
            head, newline, tail = tail.partition("\n")
        if head:
            self._partial.append(head)
        return len(text)

    def _line(self, line: str, newline: str) -> None:
        if self._wanted and self._answer is None and line and payloads.is_json(line):
            self._answer = line.strip()
        elif line or newline:
            self._log.write(line + newline)

    def flush(self) -> None:
        self._log.flush()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._log.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # the base class has a writable one
        return self._log.encoding

    def __getattr__(self, name: str) -> Any:  # buffer, reconfigure …
        return getattr(self._log, name)


class _Requests(io.TextIOBase):
    """sys.stdin of a script: each line is a request; asking for the next one answers the last one."""

    def __init__(self, session: Session, answers: _Answers, params: dict) -> None:
        self._session = session
        self._answers = answers
        self._params = params
        self._request: int | None = None
        self._began = 0.0
        self._asked = False
        self._stopped = False
        self._tensors: tensors.Request | None = None  # the request under way, where it is one of tensors

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]  # a line is never cut to `size`
        """The next request as one line; "" once the platform wants no more."""
        self._asked = True
        self._settle(None)
        while not self._stopped:
            call = self._session.take()
            if call is None:
                self._stopped = True
                break
            request, content_type, body = call
            try:
                self._tensors = self._session.tensors(content_type, body)
                if self._tensors is None:
                    line = payloads.decode_line(content_type, body, self._params)
                else:
                    line = payloads.dumps({**self._params, **self._tensors.lists(text=True)})
            except payloads.BadPayload as error:
                self._session.refuse(request, error)
                continue
            self._request = request
            self._began = self._session.clock()
            self._answers.want()
            return line + "\n"
        return ""

    def _settle(self, error: BaseException | None) -> None:
        request, self._request = self._request, None
        if request is None:
            return
        seconds = self._session.clock() - self._began
        answer = self._answers.take()
        if answer is not None and self._tensors is not None:
            self._session.answer(request, payloads.loads(answer), seconds, self._tensors.encode)
        elif answer is not None:
            self._session.answer_json(request, answer, seconds)
        else:
            self._session.error(
                request, error or Unusable("the script printed no JSON line for this request"), seconds
            )

    def ended(self, error: BaseException | None) -> None:
        """The script is over. Returns only when it was told to stop."""
        if self._stopped:
            return
        if isinstance(error, SystemExit) and error.code in (None, 0):
            error = None
        if not self._asked:
            raise error or Unusable(
                "the script ended before its first sys.stdin.readline(); load first, then read one request a "
                "line in a loop, and print one line of JSON for each",
                phase="load",
            )
        over = Unusable("the script ended; it must go on reading sys.stdin until it is at its end")
        reason = over if error is None else error
        self._settle(reason)
        self._session.fail("inference", reason)

    def read(self, size: int | None = -1) -> NoReturn:
        raise io.UnsupportedOperation("requests come one a line: use sys.stdin.readline()")

    def readable(self) -> bool:
        return True
