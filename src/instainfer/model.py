"""The nouns. Plain data, msgspec structs, no behaviour beyond reading themselves.

Units everywhere in memory: seconds (`_s`) and bytes. Milliseconds appear only in what people and other
programs read, with the unit in the key.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum, StrEnum
from typing import Any

import msgspec

#: Of variables that tell a function its own name, and libraries nothing.
OWN_NAMES = "__OW_"


class Level(IntEnum):
    """How far an instance has come; each level includes the ones below."""

    NONE = 0
    IMPORTED = 1
    LOADED = 2
    ON_DEVICE = 3


class Origin(StrEnum):
    """How an instance's process came to be."""

    SPAWNED = "spawned"  # an interpreter of its own, from nothing
    FORKED = "forked"  # from a library zygote: its libraries were there
    CLONED = "cloned"  # from a loaded template: its model too


class StartKind(StrEnum):
    """What an invocation found."""

    WARM = "warm"  # an instance that has served before
    PRELOADED = "preloaded"  # loaded ahead by the scheduler, never used
    ATTACHED = "attached"  # arrived while a load was running and joined it
    CLONED = "cloned"  # forked from a loaded template
    IMPORTED = "imported"  # libraries ready, model not
    FORKED = "forked"  # forked from a library zygote, then loaded
    COLD = "cold"


class Style(StrEnum):
    """The three ways to write a function."""

    MODULE = "module"  # load at module level, handler(event) / main(args)
    CLASS = "class"  # load(self), predict(self, payload)
    SCRIPT = "script"  # load, block on sys.stdin.readline(), print one JSON line per request


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What a function costs, measured at deploy and refreshed from production runs.

    Bytes are anonymous + shared memory, file pages not among them, and cumulative: `loaded_bytes` includes
    `imported_bytes`. `load_s` is by the path that the platform takes (restored from its snapshot, if there is
    a valid one). 0 bytes or seconds of a fork or a clone mean: not measured.
    """

    container_s: float = 0.05
    import_s: float = 0.5
    load_s: float = 0.5
    warmup_s: float = 0.0
    first_s: float = 0.1
    warm_s: float = 0.05
    imported_bytes: int = 32 << 20
    loaded_bytes: int = 64 << 20
    libraries_bytes: int = 0  # of a zygote that has imported what the function imports
    fork_s: float = 0.0  # from a zygote, until its libraries are there
    forked_bytes: int = 0  # of a loaded instance beyond the zygote's: its own
    clone_s: float = 0.0  # from a template, until it can answer
    cloned_bytes: int = 0  # of a clone beyond the template's
    start_s: float = 0.0  # of a process that is not forked: until its interpreter runs

    @property
    def loading_s(self) -> float:
        """Loading latency: import + load + the excess of a first inference (or the warm-up that ate it)."""
        return self.import_s + self.load_s + max(self.warmup_s, self.first_s - self.warm_s, 0.0)


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """What the core knows of a deployed function: one revision of it.

    `mounts` are host paths beyond the namespace's own that its interpreter needs: a container made without
    them cannot hold it.
    """

    name: str  # "namespace/name"
    revision: str
    memory: int  # bytes: the limit of a container it owns
    timeout_s: float = 60.0
    concurrency: int = 1  # requests at a time in one instance
    libraries: str = ""  # content key of what a zygote for it is made of: equal keys, one zygote
    modules: str = ""  # digest of the modules that it was seen to import: a zygote without them is of less use
    forkable: bool = False  # it may be forked from a zygote of its libraries
    cloneable: bool = False  # a loaded instance of it serves as a template
    mounts: tuple[str, ...] = ()
    strict: bool = False  # isolation = "strict": all others in its container end before it runs
    network: bool | tuple[str, ...] = False
    costs: Costs = Costs()

    @property
    def tenant(self) -> str:
        return self.name.partition("/")[0]

    @property
    def zone(self) -> str:
        """Only functions of one zone may share a container: its namespace, and what it may reach."""
        return self.tenant + reach(self.network)


def reach(network: bool | tuple[str, ...]) -> str:
    """What sets apart those that may reach this from those that may reach something else."""
    if isinstance(network, bool):
        return "+network" if network else ""
    return f"+network[{','.join(sorted(network))}]"


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output that a function declares, in the terms of the Open Inference Protocol v2."""

    name: str
    datatype: str  # "FP32", "BYTES" …
    shape: tuple[int, ...]  # -1: any size


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that come together are one call of the function, with a list."""

    max: int
    wait_s: float  # longest wait of the first for further ones


class FunctionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One deployed version, as stored and as an agent needs it to run it."""

    namespace: str
    name: str
    version: int
    digest: str  # of the package, "sha256:…"
    style: Style
    entry: str  # "main:handler", "main:Model", "main.py"
    memory: int
    timeout_s: float
    concurrency: int
    environment: str  # digest of a built environment, or "" when `python` names an interpreter path
    python: str  # "3.11", or the path of an existing interpreter
    interpreter: str = ""  # path of the interpreter it runs on, as resolved when it was deployed
    mounts: tuple[str, ...] = ()  # host paths that this interpreter needs
    packed: str = ""  # artifact: the environment as it was built, for nodes that lack it
    restores: str = ""  # artifact: its snapshot, likewise, and
    restores_key: str = ""  # what it is good for
    requirements: tuple[str, ...] = ()
    variables: dict[str, str] = {}  # environment variables of the instance
    params: dict[str, Any] = {}  # default parameters, merged under the event
    sample: str = ""  # path inside the package of one real input; ends every load with a warm-up call
    sample_type: str = ""
    network: bool | tuple[str, ...] = False  # True: any public address; or "host:port" and "*.domain:port"
    isolation: str = "freeze"  # or "strict"
    device: str = "cpu"
    cpus: int = 1  # its share of the processors, and its numerical libraries' threads
    zygote: bool = True  # these four: may it be loaded that way?
    snapshot: bool = True
    declared: tuple[str, ...] = ()  # module style: the globals that a snapshot holds
    clone: bool = True
    intercept: bool = True
    inputs: tuple[Tensor, ...] = ()  # what it declares of its tensors, if anything
    outputs: tuple[Tensor, ...] = ()
    batch: Batch | None = None
    wall: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def revision(self) -> str:
        return f"{self.key}@{self.version}:{self.digest.rpartition(':')[2][:12]}"

    @property
    def libraries(self) -> str:
        """Content key of the zygote that it may be forked from: what is imported, and what may change that."""
        if not self.zygote:
            return ""
        given = sorted(self.variables.items())
        variables = "".join(f"{key}={value}\0" for key, value in given if not key.startswith(OWN_NAMES))
        mark = hashlib.sha256(variables.encode()).hexdigest()[:12] if variables else ""
        zone = self.namespace + reach(self.network)
        return "|".join((zone, self.environment or self.interpreter, mark))


class Role(StrEnum):
    """What the holder of a key may do in its namespace; each includes the ones before."""

    INVOKE = "invoke"  # call functions, and read what there is and what happened
    DEPLOY = "deploy"  # deploy, delete, pre-load, pin
    ADMIN = "admin"  # make and revoke keys of the namespace

    def includes(self, other: Role) -> bool:
        order = list(Role)
        return order.index(self) >= order.index(other)


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key as kept: what its holder has is "id:secret", and only the secret's hash is here."""

    id: str
    namespace: str
    role: Role
    hash: str  # SHA-256 of a secret of 384 random bits: there is nothing to guess that a slow hash would slow
    created: float


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """What a namespace may use; 0: as much as there is."""

    memory: int = 0  # bytes of all its containers' limits
    concurrency: int = 0  # requests accepted and not answered
    requests_per_minute: int = 0
    functions: int = 0
    stored_bytes: int = 0  # of its packages, all versions


def version_of(revision: str) -> int:
    """The version in a FunctionSpec.revision."""
    return int(revision.rpartition("@")[2].partition(":")[0])


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What real loads and calls showed, plus which modules came from the environment, in order.

    `paths`: each way to make a load short ("zygote", "snapshot", "clone", "intercept") -> "" where it is in use,
    else why it is not.
    """

    costs: Costs
    modules: tuple[str, ...] = ()
    tasks: int = 1  # threads alive after load
    answer: str = ""  # what the sample gave, cut to a line
    paths: dict[str, str] = {}
    plain_load_s: float = 0.0  # by the function's own code, where `costs.load_s` is not
    snapshot_bytes: int = 0
    recorded: dict[str, Any] = {}  # of a plain load: what the interception of later ones may rest on

    def uses(self, path: str) -> bool:
        return self.paths.get(path, "off") == ""


class Phases(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds spent in each phase of one invocation; zero where the phase did not happen."""

    queue: float = 0.0
    container: float = 0.0
    extract: float = 0.0
    imports: float = msgspec.field(default=0.0, name="import")
    load: float = 0.0
    device: float = 0.0
    warmup: float = 0.0
    inference: float = 0.0


class JobState(StrEnum):
    WAITING = "waiting"  # for its turn, or for its next attempt
    RUNNING = "running"
    DONE = "done"  # the function answered, or raised
    DEAD = "dead"  # given up: a dead letter


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    began: float  # wall time
    ended: float
    status: str  # "ok", an error code, or "interrupted": the server ended with it


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A request that is remembered until some time after it was answered. Its id is that of its activation."""

    id: str
    namespace: str
    function: str
    content_type: str
    body: bytes
    created: float
    key: str = ""  # the caller's idempotency key; one answer for all requests of the function that have it
    digest: str = ""  # of content type and body, where there is a key
    state: JobState = JobState.WAITING
    due: float = 0.0  # of a waiting one: not before
    attempts: tuple[Attempt, ...] = ()
    answer_type: str = ""
    answer: bytes = b""
    problem: dict[str, Any] = {}  # instead of an answer; kept beside a waiting job: of its last attempt
    start: str = ""  # start kind of its last attempt
    finished: float = 0.0

    @property
    def over(self) -> bool:
        return self.state in (JobState.DONE, JobState.DEAD)


class Activation(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one invocation."""

    id: str
    namespace: str
    function: str
    version: int
    start: str
    status: str  # "ok" or an error code
    wall: float  # seconds since 1970, when accepted
    e2e_s: float
    phases: Phases
    container: str = ""
    instance: str = ""
    request: int = 0  # its number in the event log
    epoch: str = ""  # which run of the server
    error: str = ""
    hint: str = ""
    error_phase: str = ""
    trace: str = ""
