"""From a package to a function that serves: check, build, load for real, publish.

A version becomes visible only after all of it worked; whatever fails before leaves what was deployed as it was.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import mimetypes
import os
import re
import threading
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path, PurePosixPath
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from instainfer import packages
from instainfer.agent import base as wire
from instainfer.clock import Clock
from instainfer.controller import Controller
from instainfer.errors import BadInput, BadSettings, InstaInferError, NotFound, OverQuota, Unavailable
from instainfer.model import Function, FunctionSpec, Profile, Style
from instainfer.runtime.payloads import JSON, TENSORS
from instainfer.settings import Settings
from instainfer.store.base import Store

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9])?")
UIDS = 65_536  # of a namespace

Progress = Callable[[str, str], None]  # phase, message


class Deployer:
    def __init__(
        self,
        controller: Controller,
        store: Store,
        blobs: Path,
        clock: Clock,
        *,
        uid_base: int,
        load_timeout_s: float,
        max_answer: int,
        log_bytes: int,
        largest: int,
    ) -> None:
        self._controller = controller
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._uid_base = uid_base
        self._load_timeout_s = load_timeout_s
        self._max_answer = max_answer
        self._log_bytes = log_bytes
        self._largest = largest  # bytes: the largest container there can be
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # those that somebody holds

    # ---- packages as sent ----------------------------------------------------------------------------------

    def package(self, spec: FunctionSpec) -> bytes:
        try:
            return self._blob(spec.digest).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"the package of {spec.revision} is lost", hint="deploy it again") from None
        except OSError as error:
            said = f"the package of {spec.revision} cannot be read: {error}"
            raise Unavailable(said, hint="look after the disk of the data directory") from error

    def _blob(self, digest: str) -> Path:
        return self._blobs / digest.replace(":", "-")

    def _keep(self, digest: str, data: bytes) -> None:
        path = self._blob(digest)
        if path.exists():
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Two functions of one package may be deployed at once, each in a thread.
        working = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
        with working.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        working.rename(path)

    def sample(self, spec: FunctionSpec) -> bytes:
        """The input that is in its package. Blocks. Raises NotFound."""
        if not spec.sample:
            raise NotFound(f"{spec.key} has no sample", hint="`instainfer deploy PATH --sample FILE` gives it one")
        return packages.open_package(self.package(spec)).read(spec.sample)

    def tidy(self) -> None:
        """Let go of what no version needs any more: packages here, environments and packages on the nodes. For
        the start of a server, when no deployment is under way. Blocks."""
        versions = [
            version
            for spec, _ in self._store.functions(None)
            for version in self._store.versions(spec.namespace, spec.name)
        ]
        needed = {self._blob(version.digest) for version in versions}
        for path in self._blobs.glob("*"):
            if path not in needed:
                path.unlink()
        self._controller.retain(tuple(sorted({version.environment for version in versions})))

    # ---- deploy --------------------------------------------------------------------------------------------

    async def deploy(
        self,
        namespace: str,
        name: str,
        data: bytes,
        overrides: dict[str, Any],
        sample: tuple[str, bytes, str] | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """Yields {"event": "progress", "phase", "message"} and ends with {"event": "deployed", "spec",
        "profile"} or {"event": "failed", "error"}. `sample` is (file name, content, content type)."""
        said: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        stage = "package"

        def progress(phase: str, message: str) -> None:
            nonlocal stage
            stage = phase
            said.put_nowait({"event": "progress", "phase": phase, "message": message})

        def failed(error: InstaInferError) -> None:
            error.function = error.function or f"{namespace}/{name}"
            error.phase = error.phase or stage
            said.put_nowait({"event": "failed", "error": error})

        async def work() -> None:
            try:
                check_name(namespace, "namespace")
                check_name(name, "function")
                async with self._locks.setdefault(f"{namespace}/{name}", asyncio.Lock()):
                    spec, profile = await self._deploy(namespace, name, data, overrides, sample, progress)
                said.put_nowait({"event": "deployed", "spec": spec, "profile": profile})
            except InstaInferError as error:
                failed(error)
            except OSError as error:
                failed(Unavailable(f"the data directory cannot be used: {error}", hint="is its disk full?"))
            finally:
                said.put_nowait(None)

        task = asyncio.create_task(work())
        try:
            while (event := await said.get()) is not None:
                yield event
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _deploy(
        self,
        namespace: str,
        name: str,
        data: bytes,
        overrides: dict[str, Any],
        sample: tuple[str, bytes, str] | None,
        progress: Progress,
    ) -> tuple[FunctionSpec, Profile]:
        progress("package", f"checking {len(data) / 1e6:.1f} MB")
        overrides = dict(overrides)
        hold = bool(overrides.pop("hold", False))
        sample_type = ""
        if sample is not None:
            overrides["sample"] = path = f"instainfer-sample/{PurePosixPath(sample[0]).name or 'sample'}"
            data = await asyncio.to_thread(with_file, data, path, sample[1])
            sample_type = sample[2]
        package = await asyncio.to_thread(packages.open_package, data)
        settings = packages.read_settings(package, overrides)
        style, entry = packages.find_entry(package, settings, function=f"{namespace}/{name}")
        self._possible(settings, package)
        if style is Style.SCRIPT and settings.batch is not None:
            raise BadSettings(
                "a script reads one request a line: it has no batch", hint="write a class with `predict`"
            )
        digest = packages.digest(data)
        await asyncio.to_thread(self._within_quota, namespace, name, settings.memory, digest, len(data))
        await asyncio.to_thread(self._keep, digest, data)
        number = await asyncio.to_thread(self._store.function_number, namespace, name)
        uid_base = await self._uids(namespace)
        built = await self._build(namespace, uid_base, settings, progress)
        spec = FunctionSpec(
            namespace=namespace,
            name=name,
            version=0,
            digest=digest,
            style=style,
            entry=entry,
            memory=settings.memory,
            timeout_s=settings.timeout,
            # of a batch, all are under way at once
            concurrency=settings.concurrency if settings.batch is None else settings.batch.max,
            batch=settings.batch,
            environment=built.digest,
            packed=built.packed,
            python=settings.python,
            interpreter=built.python,
            mounts=built.mounts,
            requirements=settings.requirements,
            variables=settings.env,
            params=settings.params,
            sample=settings.sample,
            sample_type=sample_type_of(settings, sample_type),
            network=settings.network,
            isolation=settings.isolation,
            device=settings.device,
            cpus=settings.cpus,
            zygote=settings.zygote,
            snapshot=settings.snapshot is not False,
            declared=settings.snapshot if isinstance(settings.snapshot, tuple) else (),
            clone=settings.clone,
            intercept=settings.intercept,
            inputs=settings.inputs,
            outputs=settings.outputs,
            wall=self._clock.wall(),
        )
        trial = self.revision(spec, None, number, uid_base)
        self._controller.provide(spec, trial)
        try:
            measured = await self._measure(trial.id, progress)
            profile = measured.profile
            spec = msgspec.structs.replace(spec, restores=measured.restores, restores_key=measured.restores_key)
            spec = await asyncio.to_thread(self._store.add_version, spec)
            await asyncio.to_thread(
                self._store.put_profile, namespace, name, spec.version, profile, self._clock.wall()
            )
            current = self._controller.specs.get(spec.key)
            if hold and current is not None:
                progress("publish", f"holding version {spec.version}: version {current.version} goes on serving")
                await asyncio.to_thread(self._store.set_current, namespace, name, current.version)
            else:
                progress("publish", "making it the current version")
                await self.publish(spec, profile)
        finally:
            self._controller.withdraw(trial.id)
        return spec, profile

    def _possible(self, settings: Settings, package: packages.Package) -> None:
        """Raises BadSettings for what the package's own rules cannot know."""
        if settings.memory > self._largest:
            raise BadSettings(
                f"memory = {settings.memory / 1e6:.0f} MB is more than this node has for containers"
                f" ({self._largest / 1e6:.0f} MB)",
                hint="declare less, or start the server with more `--memory`",
            )
        if settings.batch is not None and settings.concurrency > 1:
            raise BadSettings(
                "batch and concurrency are both set", hint="leave concurrency out: a batch is its requests at once"
            )
        if settings.sample and settings.sample not in package.names():
            raise BadSettings(
                f"sample = {settings.sample!r} is not in the package",
                hint="name a file of the package, or --sample FILE",
            )

    def _within_quota(self, namespace: str, name: str, memory: int, digest: str, size: int) -> None:
        """Raises OverQuota. Blocks."""
        quota = self._store.quotas().get(namespace)
        if quota is None:
            return
        if quota.memory and memory > quota.memory:
            raise OverQuota(
                f"memory = {memory / 1e6:.0f} MB is over the namespace's quota of {quota.memory / 1e6:.0f} MB",
                hint="declare less `memory` in function.toml, or have the quota raised",
            )
        there = [spec.name for spec, _ in self._store.functions(namespace)]
        if quota.functions and name not in there and len(there) >= quota.functions:
            raise OverQuota(
                f"the namespace has {len(there)} functions, and its quota is {quota.functions}",
                hint="delete one, or have the quota raised",
            )
        if quota.stored_bytes:
            kept = {version.digest for one in there for version in self._store.versions(namespace, one)} - {digest}
            stored = size + sum(path.stat().st_size for path in map(self._blob, kept) if path.exists())
            if stored > quota.stored_bytes:
                raise OverQuota(
                    f"the namespace's packages would take {stored / 1e6:.1f} MB, and its quota is "
                    f"{quota.stored_bytes / 1e6:.1f} MB",
                    hint="delete a function, send a smaller package, or have the quota raised",
                )

    async def _build(self, namespace: str, uid_base: int, settings: Settings, progress: Progress) -> wire.Built:
        what = f"{len(settings.requirements)} requirements" if settings.requirements else "no requirements"
        progress("environment", f"Python {settings.python}, {what}")
        built: wire.Built = await self._controller.task(
            lambda token: wire.Build(
                token=token,
                namespace=namespace,
                uid_base=uid_base,
                requirements=settings.requirements,
                python=settings.python,
            ),
            lambda message: progress("environment", message),
        )
        return built

    async def _measure(self, revision: str, progress: Progress) -> wire.Measured:
        measured: wire.Measured = await self._controller.task(
            lambda token: wire.Measure(token=token, revision=revision),
            lambda message: progress("measure", message),
        )
        return measured

    async def rollback(self, namespace: str, name: str, version: int) -> FunctionSpec:
        """Make an earlier (or later) version current. Raises NotFound with the versions there are."""
        async with self._locks.setdefault(f"{namespace}/{name}", asyncio.Lock()):
            spec = await asyncio.to_thread(self._store.set_current, namespace, name, version)
            profiles = await asyncio.to_thread(self._store.functions, namespace)
            profile = next((p for s, p in profiles if s.name == name), None)
            await self.publish(spec, profile)
            return spec

    async def publish(self, spec: FunctionSpec, profile: Profile | None) -> None:
        """Let a stored version serve."""
        number = await asyncio.to_thread(self._store.function_number, spec.namespace, spec.name)
        uid_base = await self._uids(spec.namespace)
        self._controller.deploy(spec, function_of(spec, profile), self.revision(spec, profile, number, uid_base))

    async def delete(self, namespace: str, name: str) -> None:
        async with self._locks.setdefault(f"{namespace}/{name}", asyncio.Lock()):
            await asyncio.to_thread(self._store.delete_function, namespace, name)
            if f"{namespace}/{name}" in self._controller.specs:
                self._controller.delete(f"{namespace}/{name}")

    async def _uids(self, namespace: str) -> int:
        return self._uid_base + await asyncio.to_thread(self._store.namespace, namespace) * UIDS

    def revision(self, spec: FunctionSpec, profile: Profile | None, number: int, uid_base: int) -> wire.Revision:
        return wire.Revision(
            id=spec.revision,
            namespace=spec.namespace,
            name=spec.name,
            number=number,
            uid_base=uid_base,
            digest=spec.digest,
            style=spec.style,
            entry=spec.entry,
            python=spec.interpreter,
            mounts=spec.mounts,
            memory=spec.memory,
            timeout_s=spec.timeout_s,
            load_timeout_s=self._load_timeout_s,
            concurrency=spec.concurrency,
            batch=spec.batch,
            network=spec.network,
            variables=spec.variables,
            params=spec.params,
            sample=spec.sample,
            sample_type=spec.sample_type,
            modules=profile.modules if profile is not None else (),
            environment=spec.environment,
            packed=spec.packed,
            requirements=spec.requirements,
            version=spec.python,
            libraries=spec.libraries if profile is None or profile.uses("zygote") else "",
            snapshot=spec.snapshot if profile is None else profile.uses("snapshot"),
            restores=spec.restores,
            restores_key=spec.restores_key,
            declared=spec.declared,
            clone=spec.clone if profile is None else profile.uses("clone"),
            intercept=spec.intercept if profile is None else profile.uses("intercept"),
            recorded=profile.recorded if profile is not None else {},
            threads=spec.cpus,
            inputs=spec.inputs,
            outputs=spec.outputs,
            max_answer=self._max_answer,
            log_bytes=self._log_bytes,
        )


def function_of(spec: FunctionSpec, profile: Profile | None) -> Function:
    """What the core is told of a version."""
    known = Function(
        name=spec.key,
        revision=spec.revision,
        memory=spec.memory,
        timeout_s=spec.timeout_s,
        concurrency=spec.concurrency,
        libraries=spec.libraries,
        mounts=spec.mounts,
        strict=spec.isolation == "strict",
        network=spec.network,
    )
    if profile is None:
        return known
    return msgspec.structs.replace(
        known,
        costs=profile.costs,
        modules=hashlib.sha256("\n".join(profile.modules).encode()).hexdigest()[:16] if profile.modules else "",
        forkable=profile.uses("zygote"),
        cloneable=profile.uses("clone"),
    )


def check_name(name: str, what: str) -> None:
    if not NAME.fullmatch(name):
        raise BadInput(
            f"{name!r} is no {what} name",
            hint="1 to 64 letters, digits, '-', '_' and '.', with a letter or digit first and last",
        )


def content_type(path: str) -> str:
    if not path:
        return ""
    return mimetypes.guess_type(path)[0] or "application/octet-stream"


def sample_type_of(settings: Settings, given: str) -> str:
    """Of the sample, as it was given or as its name says: that of a function of tensors is a request of some."""
    found = given or content_type(settings.sample)
    return TENSORS if found == JSON and (settings.inputs or settings.outputs) else found


def with_file(data: bytes, name: str, content: bytes) -> bytes:
    """The package with one file more."""
    file = io.BytesIO(data)
    try:
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(zipfile.ZipInfo(name), content)
    except zipfile.BadZipFile:
        return data  # the check of the package says what is wrong with it
    return file.getvalue()
