"""The composition: everything that a server is made of, put together, started, and taken down in order."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import uvloop

from instainfer import __version__, anew, door, ending, garbage, lock, telemetry, tls
from instainfer.agent.compose import ARTIFACTS, compose
from instainfer.artifacts.peer import PREFIX
from instainfer.artifacts.shelf import Shelf, in_folders
from instainfer.books import Books
from instainfer.clock import BootClock
from instainfer.cluster.base import ClusterBackend
from instainfer.cluster.embedded import Embedded
from instainfer.cluster.fixed import Fixed
from instainfer.cluster.rayhosts import RayHosts
from instainfer.config import Settings, Tls, is_loopback, machine_memory
from instainfer.controller import Controller
from instainfer.core import events as ev
from instainfer.core.platform import Platform
from instainfer.core.state import State
from instainfer.deploy import Deployer
from instainfer.errors import BadSettings, Forbidden, InstaInferError, NotAllowed, Unavailable
from instainfer.eventlog import EventLog
from instainfer.gateway import about, inference, invoke, manage, openwhisk, ui
from instainfer.gateway.access import Access, who_asks
from instainfer.gateway.browsers import Browsers
from instainfer.gateway.direct import Protocol
from instainfer.gateway.health import Health
from instainfer.gateway.live import Feed
from instainfer.gateway.openwhisk import OpenWhisk
from instainfer.gateway.problems import render
from instainfer.gateway.tidy import keep_tidy
from instainfer.listening import bind, most_connections, reached, serving, sweep, url
from instainfer.membership import Membership
from instainfer.observe import Metrics
from instainfer.policies import registry
from instainfer.policies.predict.forecast import Forecast
from instainfer.shadow.follower import wanted
from instainfer.shadow.live import Live
from instainfer.shadow.messages import Start
from instainfer.shadow.watch import Shadows
from instainfer.store.lease import Lease
from instainfer.store.sql import SqlStore
from instainfer.store.writer import BatchWriter
from instainfer.work import Work

log = logging.getLogger("instainfer")

PRUNE_S = 600.0
FIRST_PRUNE_S = 10.0
KEEP_RECORDS_S = 30 * 86400.0
LONGEST_SOCKET = 107  # bytes: the kernel's sockaddr_un has 108, the last is NUL

App = Callable[[Any, Any, Any], Awaitable[None]]


def run(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; a second one ends at once."""
    telemetry.configure(as_json=settings.server.log == "json")
    policies(settings)  # a wrong name is said before anything is touched
    shadows(settings)
    port = uvloop.run(_serve(settings))
    if port is not None:
        anew.begin("--port", str(port))


def policies(settings: Settings) -> tuple[State, str]:
    """The core's initial state under these settings, and the name of its predictor. Raises BadSettings."""
    wanted = settings.policy
    mode = registry.preload(wanted.mode)
    predictor = wanted.predictor or mode.predictor
    timed = {"seconds": wanted.keep_alive_s} if wanted.keep_alive == "fixed" else {}
    keep_alive = registry.keep_alive(wanted.keep_alive, **timed)
    forecast = Forecast(registry.predictor(predictor))
    return State(forecast, keep_alive, mode.policy, queue_limit=settings.limits.queue), predictor


def shadows(settings: Settings) -> list[Start]:
    """Those that are asked for, under these settings. Raises BadSettings."""
    return wanted(
        settings.policy.shadow,
        keep_alive=settings.policy.keep_alive,
        keep_alive_s=settings.policy.keep_alive_s,
        queue_limit=settings.limits.queue,
        give_up_s=settings.limits.queue_s,
    )


def members(settings: Settings, epoch: int) -> ClusterBackend:
    """The cluster that `cluster.address` names. Raises BadSettings."""
    cluster, data = settings.cluster, settings.server.data_dir
    address, key = cluster.address, cluster.key or _kept_key(data / "cluster.key")
    secret = tls.calling(settings.tls)
    if "=" in address:
        return Fixed(address, key, epoch=epoch, lost_s=cluster.lost_s, tls=secret)
    kind, _, place = address.partition("://")
    if kind != "ray" or (place and not place.rpartition(":")[2].isdecimal()):
        raise BadSettings(
            f"cluster.address = {address!r} is none",
            hint='"ray" (the cluster that this host is in), "ray://HOST:PORT" (of its GCS), or '
            '"a=http://HOST:PORT,b=http://HOST:PORT" (agents)',
        )
    told = {
        "INSTAINFER_SANDBOX__KIND": settings.sandbox.kind,
        "INSTAINFER_NODE__UID_BASE": str(settings.node.uid_base),
        # each agent's data directory has its node's name, and an environment is good for one path only
        "INSTAINFER_ENVIRONMENTS__ROOT": str(settings.environments.root),
        **{
            f"INSTAINFER_TLS__{name.upper()}": value
            for name, value in msgspec.structs.asdict(settings.tls).items()
        },
    }
    return RayHosts(
        place, key, data, epoch=epoch, lost_s=cluster.lost_s, environ=told, grow_s=cluster.grow_s, tls=secret
    )


def _kept_key(file: Path) -> str:
    """The same at every start: agents outlive the server."""
    if not file.exists():
        new = file.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(secrets.token_urlsafe(36))
        new.rename(file)
    return file.read_text()


async def _serve(settings: Settings) -> int | None:
    """The port to listen on again, where it was told to begin anew."""
    stop = ending.told()
    again: list[int] = []
    lost: list[InstaInferError] = []

    def ends(error: InstaInferError) -> None:
        lost.append(error)
        stop.set()

    def restart(port: int) -> None:
        again.append(port)
        stop.set()

    async with contextlib.AsyncExitStack() as stack:
        composing = asyncio.create_task(_compose(settings, stack, ends, restart))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({composing, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not composing.done():  # it waits for another server's end, say
            composing.cancel()
            await asyncio.wait({composing})
        if not composing.cancelled():
            composing.result()
        await stopped
        log.info("stopping: no new requests, waiting up to %g s for the running ones", settings.server.drain_s)
    if lost:
        raise lost[0]
    return again[0] if again else None


async def _compose(
    settings: Settings,
    stack: contextlib.AsyncExitStack,
    ends: Callable[[InstaInferError], None],
    restart: Callable[[int], None],
) -> None:
    """Start everything, from the store up to the listening sockets; the stack takes it down the other way. `ends`:
    told what the server cannot go on after; `restart`: that it is to begin anew on this port."""
    data = settings.server.data_dir
    admin = data / "admin.sock"
    if (length := len(os.fsencode(admin.absolute()))) > LONGEST_SOCKET:
        raise BadSettings(
            f"the path of the data directory is too long for its admin socket: {admin.absolute()} has {length} "
            f"bytes, a socket's path at most {LONGEST_SOCKET}",
            hint="give a --data-dir with a shorter path",
        )
    encrypted = tls.answering(Tls(cert=settings.server.cert, key=settings.server.cert_key))
    stack.enter_context(lock.alone(data))
    listening = bind(settings.server.host, settings.server.port)
    stack.callback(listening.close)
    clock, epoch = BootClock(), secrets.token_hex(4)
    store = SqlStore(settings.store.url or f"sqlite:///{data / 'instainfer.db'}")
    stack.callback(store.close)
    lease = Lease(store, data / "lock", settings.store.lease_s) if settings.store.url else None
    if lease is not None:  # else the data directory's lock is enough
        await lease.take(standby=settings.store.standby)
        stack.push_async_callback(lease.release)
    access = Access(store, clock, server_key=settings.server.api_key)
    if not access.asked and not is_loopback(settings.server.host):
        raise BadSettings(
            f"server.host = {settings.server.host!r} is reachable by other machines and there is no key: "
            "anyone could run code here",
            hint="set INSTAINFER_SERVER__API_KEY to a long random text, or use host 127.0.0.1 and make keys "
            "with `instainfer namespace add`",
        )
    writer = BatchWriter(store)
    stack.callback(writer.close)

    alone = not settings.cluster.address
    agent = await compose(settings) if alone else None
    # of all servers that ever served from this database, this is the latest: what agents and gateways go by
    number = 0 if alone and lease is None else await asyncio.to_thread(store.next_epoch)
    if agent is not None:
        backend: ClusterBackend = Embedded(agent, settings.node.memory)
    else:
        backend = members(settings, number)
    state, predictor = policies(settings)
    state.era = "" if alone else f"e{number}"
    names = {"mode": settings.policy.mode, "predictor": predictor, "keep_alive": settings.policy.keep_alive}
    events = EventLog(
        data / "events",
        epoch=epoch,
        policy=names,
        keep_bytes=settings.records.keep_events_mb * 1_000_000,
    )
    books = Books(clock, writer, Metrics(), epoch=epoch, told=_told(settings, stack))
    controller = Controller(
        Platform(state),
        [agent] if agent is not None else [],
        clock,
        events,
        books,
        queue_s=settings.limits.queue_s,
        most=settings.limits.requests,
        most_bytes=max(settings.limits.bodies, settings.server.max_body),
        drain_s=settings.cluster.drain_s,
    )
    beside = Shadows(shadows(settings), clock, Live(clock, books), names)
    if beside.shadows:
        stack.push_async_callback(beside.aclose)
        await beside.begin()
        controller.watcher = beside
    deployer = Deployer(
        controller,
        store,
        data / "blobs",
        clock,
        uid_base=settings.node.uid_base,
        load_timeout_s=settings.limits.load_s,
        max_answer=settings.server.max_answer,
        log_bytes=settings.limits.log_bytes,
        largest=settings.node.memory
        if alone
        else 1 << 62,  # nodes come and go: theirs is looked at when it is run
    )
    await controller.start(deployer.package)
    books.metrics.gauges = lambda: [*books.gauges(state), *beside.gauges()]
    stack.push_async_callback(controller.aclose)
    for namespace, quota in store.quotas().items():
        controller.feed(ev.NamespaceLimited(namespace=namespace, memory=quota.memory))
    await _republish(store, deployer, here=alone)
    if not alone:
        controller.draining |= set(await asyncio.to_thread(store.drained))
    membership = Membership(controller, backend)
    stack.push_async_callback(membership.aclose)
    await membership.start()  # now that it is known what may go on of what the nodes have
    deployer.tidy()
    await _pin(store, controller)

    health = Health(
        controller,
        store,
        writer,
        agent.sandbox if agent is not None else None,
        membership,
        clock,
        settings,
        data / "events",
        predictor,
        epoch,
        started=clock.now(),
        shadows=beside,
        number=number,
        url=reached(listening, tls=bool(encrypted)),
        asks=lambda: access.asked,
        restart=functools.partial(restart, listening.getsockname()[1]),
    )
    locked = functools.partial(door.publish, listening.getsockname()[1], admin.absolute())
    stack.callback(door.withdraw, listening.getsockname()[1])
    if access.asked:
        locked()
    limits = settings.limits
    work = Work(
        controller, store, clock,
        attempts=limits.attempts, interruptions=limits.interruptions, most=limits.jobs,
        begin=access.begin,
    )  # fmt: skip
    access.freed = work.wake
    if lease is not None:
        stack.callback(asyncio.create_task(_kept(lease, work, ends)).cancel)
    await work.start()
    feed = Feed(health)
    where = url(listening, tls=bool(encrypted))
    traced = bool(settings.telemetry.otlp)
    browsers = Browsers((settings.server.host, *settings.server.hosts))
    hot = invoke.Invoke(controller, access, work, browsers, max_body=settings.server.max_body, traced=traced)
    whisk = OpenWhisk(hot, deployer, store, writer, api_host=where)
    v2 = inference.Inference(hot, health)
    management = manage.application(health, deployer, access, work, feed, locked, max_package=256_000_000)
    faces = (
        Face(invoke.PREFIX, hot, render),
        Face(openwhisk.PREFIX, whisk.application(), openwhisk.refused),
        Face(inference.PREFIX, v2, inference.failed),
        Face(ui.PREFIX, ui.Ui(), render, asks=False),
        Face(PREFIX, owners(Shelf(in_folders(data / "blobs", data / ARTIFACTS))), render),
        Face("", management, render),
    )
    admin.unlink(missing_ok=True)
    local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o177)  # the admin socket asks for no key: it is this user's alone
    try:
        local.bind(str(admin))
    finally:
        os.umask(old)
    stack.callback(admin.unlink, missing_ok=True)
    for bound, asks, kind in ((listening, True, encrypted), (local, False, dict[str, Any]())):
        direct = functools.partial(Protocol, hot=hot, asks=asks, most=most_connections() if asks else 1 << 30)
        app = _router(faces, access if asks else None, browsers)
        connections = await stack.enter_async_context(serving(app, bound, http=direct, access_log=False, **kind))
        sweeping = asyncio.create_task(sweep(connections, settings.limits.read_s))
        stack.callback(sweeping.cancel)
    pruning = asyncio.create_task(_prune(store, settings, clock))
    stack.callback(pruning.cancel)

    async def drain() -> None:
        hot.stopping = health.stopping = True
        feed.stop()
        work.stop()
        await controller.drain(settings.server.drain_s)
        await work.settle()

    stack.push_async_callback(drain)
    about.tell(data, about.About(pid=os.getpid(), url=where, version=__version__, number=number))
    stack.callback((data / about.FILE).unlink, missing_ok=True)
    if number:
        await asyncio.to_thread(store.announce, health.url)
    _announce(settings, health, where)
    garbage.settle()
    tidying = asyncio.create_task(keep_tidy(controller))
    stack.callback(tidying.cancel)


async def _kept(lease: Lease, work: Work, ends: Callable[[InstaInferError], None]) -> None:
    said = "another server has taken over the database"
    hint = "it was not renewed for store.lease_s: was this machine asleep, or the database out of reach?"
    await lease.keep(pause=work.pause, resume=work.resume, lost=lambda: ends(Unavailable(said, hint=hint)))


def _told(settings: Settings, stack: contextlib.AsyncExitStack) -> telemetry.Told | None:
    """Who hears of every request that is over."""
    told: list[telemetry.Told] = []
    if settings.telemetry.otlp:
        spans = telemetry.Spans(settings.telemetry.otlp, settings.telemetry.share)
        stack.push_async_callback(asyncio.to_thread, spans.close)
        told.append(spans)
    if settings.server.access_log:
        told.append(telemetry.AccessLog(as_json=settings.server.log == "json"))
    return telemetry.both(told)


def _announce(settings: Settings, health: Health, where: str) -> None:
    policy = health.status()["policy"]
    log.info(
        "sandbox %s, memory %.0f MB, mode %s, predictor %s, keep-alive %s, %d functions",
        health.isolation()["sandbox"],
        health.memory / 1e6,
        policy["mode"],
        policy["predictor"],
        policy["keep_alive"],
        len(health.controller.specs),
    )
    if not settings.cluster.address and health.memory > machine_memory():
        log.warning(
            "memory is more than this machine has, %.0f MB: functions may be killed", machine_memory() / 1e6
        )
    for missing in health.isolation()["missing"]:
        log.warning("the %s sandbox does not isolate everything: %s", health.isolation()["sandbox"], missing)
    print(f"instainfer serves at {where}", flush=True)


async def _republish(store: SqlStore, deployer: Deployer, *, here: bool) -> None:
    """What was deployed before this start serves again. `here`: it runs on this machine."""
    for spec, profile in await asyncio.to_thread(store.functions, None):
        if here and not await asyncio.to_thread(Path(spec.interpreter).exists):
            then = "it is pulled or built when it is called" if spec.environment else "deploy it again"
            log.warning("%s: its interpreter %s is not here; %s", spec.key, spec.interpreter, then)
        await deployer.publish(spec, profile)


async def _pin(store: SqlStore, controller: Controller) -> None:
    """Pins are in force."""
    for namespace, name in await asyncio.to_thread(store.pins):
        key = f"{namespace}/{name}"
        if key in controller.specs:
            await controller.ask(lambda token, key=key: ev.PinChanged(token=token, function=key, pinned=True))  # type: ignore[misc]


def owners(app: App) -> App:
    """For the owner alone: what is in it is of all namespaces."""

    async def check(scope: Any, receive: Any, send: Any) -> None:
        try:
            who_asks(scope).check_everywhere()
        except Forbidden as error:
            status, headers, body = render(error)
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await app(scope, receive, send)

    return check


class Face(NamedTuple):
    """Who answers below a path, and how it says no."""

    prefix: str
    app: App
    refuse: Callable[[NotAllowed | Forbidden], invoke.Response]
    asks: bool = True  # whether for a key, where there are any


def _router(faces: Sequence[Face], access: Access | None, browsers: Browsers) -> App:
    """To the first face whose prefix fits. With `access` a key is asked for, where there are any, by all that ask
    but the paths of health and what OpenWhisk's API says of itself; `principal` of the scope is whose it is.
    Browsers are told from other clients (browsers.py)."""
    open_paths = {"/livez", "/readyz", "/healthz", openwhisk.ABOUT}

    async def route(scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        face = next(face for face in faces if path.startswith(face.prefix))
        if access is not None and scope["type"] == "http":
            asks = face.asks and path not in open_paths
            try:
                browsers.check(scope["headers"], asked=access.asked, pages=not face.asks)
                who = access.who(dict(scope["headers"]).get(b"authorization", b"")) if asks else None
            except (NotAllowed, Forbidden) as error:
                status, headers, body = face.refuse(error)
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": body})
                return
            if who is not None:
                scope = {**scope, "principal": who}
        await face.app(scope, receive, send)

    return route


async def _prune(store: SqlStore, settings: Settings, clock: BootClock) -> None:
    await asyncio.sleep(FIRST_PRUNE_S)  # a server that is started often has to come to it, too
    while True:
        try:
            await asyncio.to_thread(
                store.prune,
                keep_activations=settings.records.keep_activations,
                keep_s=KEEP_RECORDS_S,
                wall=clock.wall(),
            )
            await asyncio.to_thread(store.prune_answers, clock.wall() - settings.records.keep_answers_s)
        except InstaInferError as error:
            log.warning("old records stay for now: %s", error.message)
        await asyncio.sleep(PRUNE_S)
