"""The intra-container manager: starts, ends and reaps the instances of one container.

Started as `python -I -S manager.py FD`; FD is its end of a SEQPACKET socketpair that carries JSON datagrams:

    {"op": "spawn", "instance", "argv", "env", "cwd", "uid", "gid", "limits", "packets", "control", "caps", "warm"}
            + doors
        -> {"event": "spawned", "instance", "pid"} + [its socket, stdout, stderr (, control)]
         | {"event": "refused", "error"}
    {"op": "kill", "instance"}     SIGKILL to its process group
    {"op": "exit"}                 so does the end of the socket: nothing outlives the manager
        <- {"event": "hello", "pid", "python"}
        <- {"event": "exited", "instance", "code", "signal"}
        <- {"event": "failed", "error"}  something of ours broke; it exits

A spawned child moves itself through its doors (files that take "0" to mean the writer: cgroups), writes "H" on
its descriptor 3 and waits for "G": the reader has learned its pid as the host numbers it (SCM_CREDENTIALS, which
the kernel translates) and has taken it in custody before any code of a tenant runs. Its socket is a stream, or
(`packets`) one like this; with `control` it has one like this besides, as descriptor 4; with `caps` it keeps the
right to become other uids of the container; `warm` is a clone's to know.

A process that does not start others but forks itself (a library zygote, a template) speaks the same protocol on
such a socket: `Forker`.

Everything here is on the way of a cold start, so only C modules are imported: `socket`, `signal`, `json` would
add 15 ms to an interpreter's 10.
"""

# ruff: noqa: SIM105 # contextlib is one of the imports that this does without

from __future__ import annotations

import os
import resource
import select
import sys
from _signal import (  # type: ignore[import-not-found] # typeshed knows `signal` only
    SIG_DFL,
    SIG_IGN,
    SIGCHLD,
    SIGINT,
    SIGKILL,
    SIGPIPE,
    SIGTERM,
    SIGXFSZ,
    set_wakeup_fd,
    signal,
)
from _socket import (
    AF_UNIX,
    CMSG_SPACE,
    SCM_RIGHTS,
    SO_PASSCRED,
    SO_SNDBUF,
    SOCK_SEQPACKET,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
    socketpair,
)

TYPE_CHECKING = False  # typing has it, at the price of an import
if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST = 256 << 10  # bytes of a datagram
MOST_DOORS = 16
HIGHEST = 4  # of the descriptors that a child is given
HANDLED = (SIGPIPE, SIGXFSZ, SIGINT, SIGTERM, SIGCHLD)  # signals that Python or a manager has changed
MARK = "INSTAINFER_SANDBOX"  # set by a sandbox that finds its processes by it; inherited by instances
MSG_CMSG_CLOEXEC = 0x40000000  # not in _socket of every version

#: of prctl(2)
_PARENT_DEATH_SIGNAL, DUMPABLE, _KEEPCAPS, _CHILD_SUBREAPER, _NO_NEW_PRIVS, _AMBIENT = 1, 4, 8, 36, 38, 47
_SETGID, _SETUID = 6, 7  # of capabilities(7)


def _make_loads() -> Callable:
    """json.loads without the import of json, whose regular expressions take 7 ms: by the C scanner that json
    itself uses, or by json where an interpreter has it not."""
    try:
        from _json import make_scanner, scanstring

        class Context:
            strict = True
            object_hook = object_pairs_hook = None
            parse_float = float
            parse_int = int
            parse_constant = float
            parse_string = scanstring
            memo: dict = {}  # noqa: RUF012 # the scanner wants it there

        scan = make_scanner(Context())  # type: ignore[arg-type] # typeshed takes the scanner for its own context
        if scan('{"a": [1, "b", null]}', 0)[0] != {"a": [1, "b", None]}:
            raise ImportError("a different scanner")
        return lambda text: scan(text, 0)[0]
    except (ImportError, AttributeError, TypeError):
        from json import loads

        return loads


def _quote(text: str) -> str:
    try:
        from _json import encode_basestring_ascii
    except ImportError:
        from json import dumps as encode_basestring_ascii
    return encode_basestring_ascii(text)


def _dumps(message: dict) -> bytes:
    """A flat dict of text, integers and None as JSON."""
    parts = []
    for key, value in message.items():
        word = "null" if value is None else str(value) if isinstance(value, int) else _quote(str(value))
        parts.append('"%s":%s' % (key, word))
    return ("{%s}" % ",".join(parts)).encode()


class Born(Exception):
    """Raised in a child that does not become another program: unwinds its parent's work."""

    def __init__(self, message: dict) -> None:
        super().__init__()
        self.message = message


class Manager:
    def __init__(self, control: socket) -> None:
        self._control = control
        self._loads = _make_loads()
        self._instances: dict = {}  # name -> pid
        self._names: dict = {}  # pid -> name
        self._init = os.getpid() == 1  # of a pid namespace
        self._privileged = self._allowed()
        if not self._privileged:
            self._harden()
        self._mark = os.environ.get(MARK)
        control.setsockopt(SOL_SOCKET, SO_SNDBUF, 1 << 20)
        # what a child gets as 0 to 4 must not lie there: it would be overwritten by what goes first
        self._null = os.open("/dev/null", os.O_RDWR)
        while self._null <= HIGHEST:
            self._null = os.dup(self._null)
        self._wake, self._woken = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._woken, False)
        signal(SIGCHLD, lambda *_: None)
        signal(SIGINT, SIG_IGN)
        signal(SIGTERM, SIG_IGN)
        set_wakeup_fd(self._woken, warn_on_full_buffer=False)

    def _allowed(self) -> bool:
        """Whether it is root over the uids of its instances."""
        return self._init and capable()

    def _harden(self) -> None:
        """For a manager that shares its uid with its instances, before there are any."""
        prctl(DUMPABLE, 0)  # its memory and descriptors are closed to them (their exec makes them dumpable)
        prctl(_NO_NEW_PRIVS, 1)
        prctl(_CHILD_SUBREAPER, 1)

    def serve(self) -> None:
        """Until told to exit or nobody is left to tell."""
        hello = {"event": "hello", "pid": os.getpid(), "python": "%d.%d.%d" % sys.version_info[:3]}
        hello.update(self._about())
        self._tell(hello)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._wake:
                    try:
                        os.read(self._wake, 4096)
                    except BlockingIOError:
                        pass
                elif not self._obey():
                    return
            self._reap()

    def _about(self) -> dict:
        return {}

    def fail(self, error: str) -> None:
        try:
            self._tell({"event": "failed", "error": error})
        except OSError:
            pass

    def end(self) -> None:
        """Kill every instance. As pid 1 nothing more is needed: the kernel kills the rest of the namespace.
        Elsewhere orphans come here too (subreaper), generation by generation."""
        for pid in list(self._names):
            _kill(pid)
        if self._init:
            return
        for _ in range(100):
            try:
                with open("/proc/self/task/%d/children" % os.getpid()) as file:
                    children = [int(word) for word in file.read().split()]
            except OSError:
                return
            if not children:
                return
            for pid in children:
                _kill(pid)
                os.waitpid(pid, 0)

    def _obey(self) -> bool:
        try:
            data, ancillary, _, _ = self._control.recvmsg(LARGEST, CMSG_SPACE(4 * MOST_DOORS), MSG_CMSG_CLOEXEC)
        except ConnectionResetError:  # the other end went without reading all that it was told
            return False
        if not data:
            return False
        doors = _descriptors(ancillary)
        message = self._loads(data.decode())
        if message["op"] == "exit":
            return False
        if message["op"] == "kill":
            pid = self._instances.get(message["instance"])
            if pid is not None:
                _kill(pid)
        elif message["op"] == "spawn":
            try:
                self._spawn(message, doors)
            except (OSError, ValueError, KeyError) as error:
                self._tell({"event": "refused", "instance": message["instance"], "error": str(error)})
        for door in doors:
            os.close(door)
        return True

    def _spawn(self, message: dict, doors: list) -> None:
        name = message["instance"]
        if name in self._instances:
            raise ValueError("instance %s runs already" % name)
        if self._privileged and not message["uid"]:
            # inner root may set uids: whoever runs as it is every other function
            raise ValueError("a uid other than 0 is needed in this container")
        ours: list = []  # what the reader gets
        theirs: list = []  # what the child gets as 3, 1, 2 and 4
        try:
            kinds = [SOCK_SEQPACKET if message.get("packets") else SOCK_STREAM]
            if message.get("control"):
                kinds.append(SOCK_SEQPACKET)
            for kind in kinds:
                near, far = socketpair(AF_UNIX, kind)
                ours.append(near.detach())
                theirs.append(far.detach())
            for _ in range(2):
                reading, writing = os.pipe()
                ours.append(reading)
                theirs.append(writing)
            end = socket(fileno=ours[0])
            end.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)  # before the fork: "H" must find it set
            end.detach()
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                self._become(message, doors, ours, theirs, parent)
                raise Born(message)
            self._instances[name] = pid
            self._names[pid] = name
            sock, control, (out, err) = ours[0], ours[1:-2], ours[-2:]
            self._tell({"event": "spawned", "instance": name, "pid": pid}, [sock, out, err, *control])
        except Born:
            ours, theirs = [], []  # closed, or something else by now
            raise
        finally:
            for fd in ours + theirs:
                os.close(fd)

    def _become(self, message: dict, doors: list, ours: list, theirs: list, parent: int) -> None:
        """In the child: to what it is to be. Returns only in a Forker's."""
        doing = "enter its cgroup"
        try:
            for door in doors:
                try:
                    os.write(door, b"0")
                except OSError:
                    pass  # whoever reads "H" looks, and moves us the slow way or gives up on us
            doing = "arrange its descriptors"
            set_wakeup_fd(-1)
            sock, control, (out, err) = theirs[0], theirs[1:-2], theirs[-2:]
            for number, fd in enumerate((self._null, out, err, sock, *control)):
                os.dup2(fd, number)
            if not control:
                os.close(HIGHEST)
            self._close(doors + ours + theirs)
            doing = "start a session"
            os.setsid()
            os.umask(0o077)
            for number in HANDLED:
                signal(number, SIG_DFL)
            doing = "limit itself"
            if not self._privileged:
                prctl(DUMPABLE, 1)  # else its own /proc/self is closed to it
            _be_the_first_to_go()
            for limit, value in (message.get("limits") or {}).items():
                _lower(getattr(resource, "RLIMIT_" + limit.upper()), value)
            uid, gid = message.get("uid"), message.get("gid")
            if uid is not None:
                doing = "become uid %d" % uid
                if message.get("caps"):
                    prctl(_KEEPCAPS, 1)
                os.setgroups([])
                gid = uid if gid is None else gid
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
                if message.get("caps"):
                    hold((_SETGID, _SETUID))
            self._detach(parent)
            doing = "wait for its go"
            os.write(3, b"H")
            if os.read(3, 1) != b"G":
                os._exit(127)
            doing = "change to %s" % message["cwd"]
            os.chdir(message["cwd"])
            env = dict(message["env"])
            if self._mark:
                env[MARK] = self._mark
            doing = "start %s" % " ".join(message["argv"][:1])
            self._go_on(message, env)
        except BaseException as error:  # noqa: BLE001 # a child must not go on as a second manager, whatever happened
            try:
                os.write(2, ("cannot %s: %s\n" % (doing, error)).encode())
            finally:
                os._exit(127)

    def _close(self, fds: list) -> None:
        """In the child: what is not its own, above the descriptors that it is given."""
        os.closerange(HIGHEST + 1, 256)

    def _detach(self, parent: int) -> None:
        """In the child: see that it does not outlive a manager that the kernel does not end it with."""
        if not self._init:
            prctl(_PARENT_DEATH_SIGNAL, SIGKILL)  # after setuid, which clears it
            if os.getppid() != parent:
                os._exit(127)

    def _go_on(self, message: dict, env: dict) -> None:
        os.execve(message["argv"][0], message["argv"], env)

    def _reap(self) -> None:
        while True:
            try:
                # look first and reap last: until then the group's number can be nobody else's
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            pid = found.si_pid
            if pid in self._names:
                _kill(pid)
            _, status = os.waitpid(pid, 0)
            name = self._names.pop(pid, None)
            if name is not None:
                del self._instances[name]
                signalled = os.WIFSIGNALED(status)
                code = None if signalled else os.WEXITSTATUS(status)
                number = os.WTERMSIG(status) if signalled else None
                self._tell({"event": "exited", "instance": name, "code": code, "signal": number})

    def _tell(self, message: dict, fds: list = []) -> None:  # noqa: B006 # never changed
        rights = [(SOL_SOCKET, SCM_RIGHTS, b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds))] if fds else []
        self._control.sendmsg([_dumps(message)], rights)


def _descriptors(ancillary: list) -> list:
    found = []
    for level, kind, data in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            found += [int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data) - 3, 4)]
    return found


def _kill(pid: int) -> None:
    """SIGKILL to the group that `pid` leads, or to it alone while it has not come so far as to lead one."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, SIGKILL)
            return
        except OSError:  # not there; or not ours to kill: a zygote's, which whoever asks us kills himself
            pass


def _lower(which: int, value: int) -> None:
    """Set both limits; never raise one."""
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))


def _be_the_first_to_go() -> None:
    """When the container as a whole is out of memory, an instance dies, not the manager."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")
    except OSError:
        pass  # already above: only the privileged may lower it


def capable() -> bool:
    """Whether we hold any capability: then, as pid 1, we are root over the uids of our instances."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return int(line[7:], 16) != 0
    return False


def prctl(option: int, value: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3)


def hold(capabilities: tuple) -> None:
    """Keep these capabilities, over the next exec too, and no others."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    bits = sum(1 << number for number in capabilities)
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, ourselves
    sets = (ctypes.c_uint32 * 6)(bits, bits, bits, 0, 0, 0)  # effective, permitted, inheritable, twice 32 bits
    if libc.capset(head, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    for number in capabilities:
        if libc.prctl(_AMBIENT, *[ctypes.c_ulong(word) for word in (2, number, 0, 0)]) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_CAP_AMBIENT_RAISE)")


def main() -> None:
    control = socket(AF_UNIX, SOCK_SEQPACKET, 0, fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    manager = Manager(control)
    try:
        manager.serve()
    except BrokenPipeError:
        pass  # the other end went while something was being told
    except BaseException as error:
        manager.fail("%s: %s" % (type(error).__name__, error))
        raise
    finally:
        manager.end()


if __name__ == "__main__":
    main()
