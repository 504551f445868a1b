"""Facts, in the past tense. Everything the core ever learns comes through one of these.

All are tagged msgspec structs: the event log and the agent's wire carry them as they are. Times inside are
durations in seconds; the moment of an event is the `now` it is handled with.
"""

from __future__ import annotations

import msgspec

from instainfer.model import Function, Level, Origin


class Event(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


class HeldInstance(msgspec.Struct, frozen=True, kw_only=True):
    """One that was loaded under an earlier controller and rests."""

    instance: str
    function: str
    revision: str
    level: Level
    origin: Origin = Origin.SPAWNED
    bytes: int = 0
    served: int = 0
    frozen: bool = False


class HeldContainer(msgspec.Struct, frozen=True, kw_only=True):
    """One that an earlier controller had made."""

    container: str
    function: str  # its first owner
    limit: int
    mounts: tuple[str, ...] = ()
    instances: tuple[HeldInstance, ...] = ()


class NodeJoined(Event, frozen=True, kw_only=True):
    """`guests`: the node's sandbox keeps functions of one namespace apart, so that they may share a container.
    `held`: what is there already, all of it at rest."""

    node: str
    memory: int
    guests: bool = True
    load_slots: int = 2  # loads at a time before they slow each other
    zygote_memory: int = 0  # bytes that library zygotes may take of `memory`; 0: none are started
    held: tuple[HeldContainer, ...] = ()


class NodeLost(Event, frozen=True, kw_only=True):
    """Whatever ran there has ended, or counts as ended. `unread`: requests that never reached it."""

    node: str
    reason: str = ""
    unread: tuple[int, ...] = ()


class NodeClosed(Event, frozen=True, kw_only=True):
    """Nothing new goes there until NodeOpened: it is not heard of, or (`drain`) to be emptied: then what is idle
    there ends when it stands elsewhere, at the latest after `within_s`, and the rest when it is done."""

    node: str
    drain: bool = False
    within_s: float = 0.0


class NodeResized(Event, frozen=True, kw_only=True):
    """It has so many bytes for containers from now on. Of what is there too much ends, idle first."""

    node: str
    memory: int


class NodeOpened(Event, frozen=True, kw_only=True):
    node: str


class FunctionDeployed(Event, frozen=True, kw_only=True):
    function: Function


class FunctionDeleted(Event, frozen=True, kw_only=True):
    function: str


class RequestArrived(Event, frozen=True, kw_only=True):
    request: int
    function: str


class RequestCancelled(Event, frozen=True, kw_only=True):
    """The caller went away, or (`code` overloaded) its wait is over. Concerns only a request that waits."""

    request: int
    reason: str = "the caller went away"
    code: str = "cancelled"


class InvocationFinished(Event, frozen=True, kw_only=True):
    """The instance answered (well or badly) and is free again."""

    request: int
    instance: str
    inference_s: float
    ok: bool = True


class ContainerReady(Event, frozen=True, kw_only=True):
    container: str
    seconds: float


class ContainerLost(Event, frozen=True, kw_only=True):
    """Gone: destroyed as told, failed to start, or died. Every instance in it is gone too. `unread` as in
    InstanceLost."""

    container: str
    reason: str = ""
    unread: tuple[int, ...] = ()


class InstanceReady(Event, frozen=True, kw_only=True):
    """Acknowledged by the instance itself. Reached `level`; the times are of the steps just made, without
    the time it was frozen. `start_s`: until its interpreter ran (a new process only)."""

    instance: str
    level: Level
    origin: Origin = Origin.SPAWNED
    start_s: float = 0.0
    import_s: float = 0.0
    load_s: float = 0.0
    warmup_s: float = 0.0


class InstanceFailed(Event, frozen=True, kw_only=True):
    """Its import, load or warm-up raised, and its process is gone: no InstanceLost follows."""

    instance: str
    phase: str
    reason: str


class InstanceLost(Event, frozen=True, kw_only=True):
    """Ended as told, or its process died. `code` is one of errors.BY_CODE; `request` is the one that caused
    it, where one did (it passed its time limit): others that ran beside it are victims. `unread` are requests
    that it died before it had read: its function never saw them, so another instance may."""

    instance: str
    reason: str = ""
    code: str = "instance_crashed"
    request: int | None = None
    unread: tuple[int, ...] = ()


class NamespaceLimited(Event, frozen=True, kw_only=True):
    """Its containers' limits may come to so many bytes; 0: no limit of its own. What is there stays."""

    namespace: str
    memory: int


class ZygoteReady(Event, frozen=True, kw_only=True):
    """It has imported all and can be forked."""

    zygote: str
    import_s: float
    bytes: int


class ZygoteLost(Event, frozen=True, kw_only=True):
    """Gone: ended as told, failed, or died. `refused`: its libraries cannot be forked (they start threads,
    say), so that another try is useless before other ones are deployed."""

    zygote: str
    reason: str = ""
    refused: bool = False


class ZygoteSampled(Event, frozen=True, kw_only=True):
    """Anonymous + shmem bytes that it holds."""

    zygote: str
    bytes: int


class MemorySampled(Event, frozen=True, kw_only=True):
    """Anonymous + shmem bytes of every instance measured in one container."""

    container: str
    instances: dict[str, int]


class TimerFired(Event, frozen=True, kw_only=True):
    timer: str


class HintReceived(Event, frozen=True, kw_only=True):
    """Somebody knows: `function` will be called `in_s` seconds from now with this probability."""

    function: str
    in_s: float
    probability: float = 1.0


class PreloadRequested(Event, frozen=True, kw_only=True):
    """By hand. Answered by one `Answer` with the token."""

    token: int
    function: str


class OffloadRequested(Event, frozen=True, kw_only=True):
    token: int
    function: str


class PinChanged(Event, frozen=True, kw_only=True):
    """An instruction to the keep-alive policy: keep one container with this function loaded."""

    token: int
    function: str
    pinned: bool


AnyEvent = (
    NodeJoined
    | NodeLost
    | NodeClosed
    | NodeOpened
    | NodeResized
    | FunctionDeployed
    | FunctionDeleted
    | RequestArrived
    | RequestCancelled
    | InvocationFinished
    | ContainerReady
    | ContainerLost
    | InstanceReady
    | InstanceFailed
    | InstanceLost
    | NamespaceLimited
    | ZygoteReady
    | ZygoteLost
    | ZygoteSampled
    | MemorySampled
    | TimerFired
    | HintReceived
    | PreloadRequested
    | OffloadRequested
    | PinChanged
)
