"""Commands. The core decides them, a shell carries them out and reports back with events."""

from __future__ import annotations

import msgspec

from instainfer.model import Level, StartKind


class Action(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """The grounds of a decision, in numbers: kept with the action and shown by `why`."""

    rule: str  # one sentence
    probability: float | None = None  # of an arrival within the horizon
    rate: float | None = None  # arrivals per second expected now
    saves_s: float | None = None  # latency that the item saves an arrival
    weight: int | None = None  # bytes it needs beyond what is there
    displaced: tuple[str, ...] = ()  # instances that made room


class CreateContainer(Action, frozen=True, kw_only=True):
    """Answered by ContainerReady or ContainerLost."""

    container: str
    node: str
    function: str  # its first owner
    revision: str  # of the owner: says which namespace's files and whether a network it gets
    limit: int
    mounts: tuple[str, ...] = ()
    why: Why


class ResizeContainer(Action, frozen=True, kw_only=True):
    container: str
    limit: int


class DestroyContainer(Action, frozen=True, kw_only=True):
    """Answered by ContainerLost, after which its memory is free."""

    container: str
    why: Why


class Load(Action, frozen=True, kw_only=True):
    """Start an instance and bring it to `level`; `ahead` tells a pre-load from a load that a request (or a
    pin) demands; `waiting`: a request waits, and will be the first call itself. Answered by InstanceReady or
    InstanceFailed or InstanceLost."""

    instance: str
    container: str
    function: str
    revision: str
    level: Level
    ahead: bool
    waiting: bool = False
    why: Why


class Raise(Action, frozen=True, kw_only=True):
    """Bring a ready instance to a higher level. Answered as Load."""

    instance: str
    level: Level
    ahead: bool
    why: Why


class Offload(Action, frozen=True, kw_only=True):
    """End an instance and get its memory back. Answered by InstanceLost."""

    instance: str
    why: Why


class Freeze(Action, frozen=True, kw_only=True):
    """Not answered: the agent carries out the actions of one container in order, and a Dispatch that
    follows a Freeze starts only once the frozen state is confirmed."""

    instance: str


class Thaw(Action, frozen=True, kw_only=True):
    instance: str


class StartZygote(Action, frozen=True, kw_only=True):
    """Import the libraries that the functions of this key were seen to import, once, in a process that then
    waits to be forked. Answered by ZygoteReady or ZygoteLost."""

    zygote: str
    node: str
    libraries: str  # Function.libraries
    revisions: tuple[str, ...]  # of the functions that it is for
    limit: int  # bytes: it is ended when it goes beyond
    why: Why


class EndZygote(Action, frozen=True, kw_only=True):
    """Answered by ZygoteLost. What was forked from it lives on."""

    zygote: str
    why: Why


class Dispatch(Action, frozen=True, kw_only=True):
    """Answered by InvocationFinished, or InstanceLost for all that ran there."""

    request: int
    instance: str
    start: StartKind


class Reject(Action, frozen=True, kw_only=True):
    """The request ends with an error. `code` is one of errors.BY_CODE."""

    request: int
    code: str
    reason: str
    phase: str = ""
    instance: str = ""  # where it ran or waited, if it got so far


class SetTimer(Action, frozen=True, kw_only=True):
    """Feed TimerFired(timer) at `at` (same clock as `now`). Setting a timer again replaces it."""

    timer: str
    at: float


class Answer(Action, frozen=True, kw_only=True):
    """To whoever asked by hand."""

    token: int
    ok: bool
    message: str


AnyAction = (
    CreateContainer
    | ResizeContainer
    | DestroyContainer
    | Load
    | Raise
    | Offload
    | Freeze
    | Thaw
    | StartZygote
    | EndZygote
    | Dispatch
    | Reject
    | SetTimer
    | Answer
)
