"""The agent's interface: messages in, messages out, nothing else.

The controller speaks to the pre-loading agent of a node only through `Agent`: commands go in with `send` (they
never answer and never raise), everything that happens comes back through the sink that `start` was given. The
in-process and the HTTP implementation pass the same contract suite. A command for an instance that has ended
does nothing: its InstanceLost was reported, or will be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import msgspec

from instainfer.core import actions, events
from instainfer.model import Batch, Profile, Style, Tensor


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """All that an agent needs to run one version of a function."""

    id: str  # FunctionSpec.revision
    namespace: str
    name: str
    number: int  # of the function in its namespace: its inner uid is 1000 + number
    uid_base: int  # of the namespace
    digest: str  # of the package
    style: Style
    entry: str
    python: str  # path of the interpreter
    mounts: tuple[str, ...] = ()
    memory: int = 512 << 20
    timeout_s: float = 60.0
    load_timeout_s: float = 300.0
    concurrency: int = 1
    batch: Batch | None = None
    network: bool | tuple[str, ...] = False
    variables: dict[str, str] = {}
    params: dict[str, Any] = {}
    sample: str = ""
    sample_type: str = ""
    modules: tuple[str, ...] = ()  # recorded: what level IMPORTED imports
    environment: str = ""  # digest of what it is built from; "" for an interpreter that is used as it is
    packed: str = ""  # artifact: the environment as another node built it, for nodes that lack it
    requirements: tuple[str, ...] = ()  # what it is built of, where it cannot be had otherwise
    version: str = ""  # of Python, likewise: "3.11"
    libraries: str = ""  # Function.libraries: which zygote it may be forked from; "" is none
    snapshot: bool = False  # its model may be kept as an object snapshot
    restores: str = ""  # artifact: its snapshot, for nodes that lack it
    restores_key: str = ""  # what that is good for: another processor or runtime has another key
    declared: tuple[str, ...] = ()  # module style: the globals that are the model
    clone: bool = False  # a loaded process of it may serve as a template
    intercept: bool = False  # its own loading code may be made faster
    recorded: dict[str, Any] = {}  # of its load at deploy: what its interception may rest on
    threads: int = 1  # of numerical libraries
    inputs: tuple[Tensor, ...] = ()  # that it declares; requests are held to them
    outputs: tuple[Tensor, ...] = ()
    max_answer: int = 64 << 20
    log_bytes: int = 64 << 10  # per activation


# ---- commands: the core's actions, and these -----------------------------------------------------------------


class Provide(Message, frozen=True, kw_only=True):
    """This revision may be loaded from now on. The node gets its package and its environment from its sources, or
    builds that itself; answered by Missing when the package is not to be had."""

    revision: Revision


class Deliver(Message, frozen=True, kw_only=True):
    """The package of a revision."""

    revision: str
    package: bytes


class Peers(Message, frozen=True, kw_only=True):
    """URLs of the other nodes that have artifacts; they are asked after the node's own sources."""

    urls: tuple[str, ...]


class Withdraw(Message, frozen=True, kw_only=True):
    """The revision is deleted: its package goes when nothing runs it any more."""

    revision: str


class Retain(Message, frozen=True, kw_only=True):
    """These environments are still needed, and the packages and snapshots of what was provided: all others may
    go."""

    environments: tuple[str, ...]


class Invoke(Message, frozen=True, kw_only=True):
    """Answered by Answered, or by InstanceLost for all that ran in the instance."""

    request: int
    instance: str
    activation: str
    content_type: str
    body: bytes
    traceparent: str = ""


class Build(Message, frozen=True, kw_only=True):
    """Build an environment. Answered by Progress, then Built or TaskFailed."""

    token: int
    namespace: str
    uid_base: int
    requirements: tuple[str, ...]
    python: str


class Measure(Message, frozen=True, kw_only=True):
    """Load the revision for real in a container of its own, call it with its sample, end it. Answered by
    Progress, then Measured or TaskFailed."""

    token: int
    revision: str


class Cancel(Message, frozen=True, kw_only=True):
    """Nobody wants the rest of what this request streams."""

    request: int
    instance: str


Command = (
    actions.CreateContainer
    | actions.ResizeContainer
    | actions.DestroyContainer
    | actions.Load
    | actions.Raise
    | actions.Offload
    | actions.Freeze
    | actions.Thaw
    | actions.StartZygote
    | actions.EndZygote
    | Provide
    | Deliver
    | Peers
    | Withdraw
    | Retain
    | Invoke
    | Cancel
    | Build
    | Measure
)

# ---- reports: the core's events, and these -------------------------------------------------------------------


class Missing(Message, frozen=True, kw_only=True):
    revision: str


class Answered(Message, frozen=True, kw_only=True):
    """The function's answer (`problem` empty) or its error."""

    request: int
    instance: str
    inference_s: float
    content_type: str = ""
    body: bytes = b""
    problem: dict[str, Any] = {}
    logs: tuple[tuple[str, str], ...] = ()  # (stream, text)


class Part(Message, frozen=True, kw_only=True):
    """A part of an answer that is streamed; Answered without a body ends it."""

    request: int
    instance: str
    content_type: str
    body: bytes


class Logged(Message, frozen=True, kw_only=True):
    """Output outside any invocation: of imports, loads, threads; or (`request`) of the one that ran when its
    instance ended."""

    revision: str
    instance: str
    logs: tuple[tuple[str, str], ...]
    request: int | None = None


class Progress(Message, frozen=True, kw_only=True):
    token: int
    message: str


class Built(Message, frozen=True, kw_only=True):
    token: int
    digest: str
    python: str
    mounts: tuple[str, ...]
    packed: str = ""  # artifact, where other nodes may want it


class Measured(Message, frozen=True, kw_only=True):
    token: int
    profile: Profile
    restores: str = ""  # artifact of its snapshot, where other nodes may want it
    restores_key: str = ""


class TaskFailed(Message, frozen=True, kw_only=True):
    token: int
    problem: dict[str, Any]


Report = (
    events.ContainerReady
    | events.ContainerLost
    | events.InstanceReady
    | events.InstanceFailed
    | events.InstanceLost
    | events.ZygoteReady
    | events.ZygoteLost
    | events.ZygoteSampled
    | events.MemorySampled
    | events.NodeLost
    | events.NodeClosed
    | events.NodeOpened
    | Missing
    | Answered
    | Part
    | Logged
    | Progress
    | Built
    | Measured
    | TaskFailed
)


class Carried(Message, frozen=True, kw_only=True):
    """Over HTTP, before the report of a loss: the last batch of commands that was carried out before it. What was
    sent later to the one that is lost has not been read."""

    batch: int


Sink = Callable[[Report], None]


class Agent(Protocol):
    node: str
    shelf: str  # URL at which other nodes may pull its artifacts; "": they may not

    async def start(self, sink: Sink) -> events.NodeJoined:
        """Remove leftovers, get ready, say what the node has. Reports come to `sink` on the caller's loop,
        in the order in which they happened. Raises errors.Unavailable."""
        ...

    def send(self, command: Command) -> None:
        """In order per container. Never blocks."""
        ...

    async def aclose(self) -> None:
        """End everything on the node."""
        ...


@runtime_checkable
class Restarts(Protocol):
    """An agent whose process can begin anew."""

    async def restart(self) -> None:
        """What runs there ends, NodeLost follows. Raises errors.Unavailable."""
        ...


@runtime_checkable
class Keeps(Protocol):
    """An agent that can do without its controller for a while: what rests is there for the next one."""

    async def rest(self, reason: str) -> None:
        """End every container in which something runs or loads, and whatever else is under way: nobody hears how
        it ends, or another controller may have begun it again."""
        ...

    async def hand_over(self, sink: Sink) -> events.NodeJoined:
        """`rest`; from now on reports go to this sink, and the containers that are left are said to be held."""
        ...
