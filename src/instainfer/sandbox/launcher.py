"""The launcher: a small process that builds the containers of one `linux` sandbox.

The server is big, has threads and many descriptors: forking it is slow, unsafe, and hands all of that to a
container. So it starts this one (single-threaded, standard library only) and sends it requests over a
SEQPACKET socketpair, JSON datagrams with the manager's end of a control socket, and one over which a container's
way out is handed back (`egress`: a port that it listens on inside), as SCM_RIGHTS:

    {"op": "create", ...spec...} + 2 fds ->  {"event": "created", "id", "pid"} + pidfd
                                        |  {"event": "failed", "id", "operation", "error"}
                                       ->  {"event": "exited", "id", "code" | "signal"}

It builds each container in a child (`_build`), which forks the container's pid 1 (`_become_manager`) and leaves
it to the launcher, its subreaper. When its socket ends, whatever ended the server, it kills every container
and removes their cgroups. It lives in a session of its own, so that a Ctrl-C for the server is none for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

from instainfer.sandbox import cgroups, seccomp, syscalls
from instainfer.sandbox import operations as op

LARGEST = 256 << 10  # bytes of a datagram
CONTROL, REPORT = 3, 4  # descriptors of a container's pid 1

#: /etc of the host that libraries read at start; nothing that names its users, secrets or network.
ETC = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/ssl", "/etc/ca-certificates", "/etc/pki", "/etc/localtime")
ETC_NETWORK = ("/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf")
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
DEVICES = ("null", "zero", "full", "random", "urandom")
#: Numerical libraries count cores and memory nodes here, and warn or misjudge them where it is missing.
HARDWARE = ("/sys/devices/system/cpu", "/sys/devices/system/node")
PROC_READ_ONLY = ("sys", "sysrq-trigger", "irq", "bus", "fs")
PROC_HIDDEN = ("kcore", "keys", "key-users", "timer_list", "sched_debug", "kallsyms", "config.gz", "kmsg")


def isolation(request: dict[str, Any]) -> list[op.Operation]:
    """The first half of the plan: what the builder does to itself before it forks pid 1."""
    flags = syscalls.NEWNS | syscalls.NEWPID | syscalls.NEWIPC | syscalls.NEWUTS | syscalls.NEWCGROUP
    names = "mount, pid, ipc, uts, cgroup"
    if not request["network"]:
        flags |= syscalls.NEWNET
        names += ", net"
    plan: list[op.Operation] = [op.LeaveKeys()]
    if request["privileged"]:
        # still the real root: sources may lie under its 0700 directories, and a user namespace that is made
        # later owns none of these, so that nobody in it can mount, route or rename
        plan.append(op.Unshare(flags, names))
    else:
        plan.append(op.Unshare(flags | syscalls.NEWUSER, f"{names}, user"))
        plan.append(op.MapOwnUser(os.geteuid(), os.getegid()))
    plan.append(op.Hostname(request["id"]))
    if not request["network"]:
        plan.append(op.Loopback())
    return plan


def filesystem(request: dict[str, Any]) -> list[op.Operation]:
    """The second half: pid 1 makes its root from nothing and moves into it."""
    root = request["root"]
    scratch = request["scratch"]
    etc = (*ETC, *(ETC_NETWORK if request["network"] else ()))
    plan: list[op.Operation] = [op.PrivateMounts(), op.Tmpfs(root, 0o755, 1 << 20)]
    for path in SYSTEM:
        if os.path.islink(path):  # noqa: PTH114 # text, as in operations
            plan.append(op.Symlink(root + path, os.path.realpath(path).lstrip("/")))
        else:
            plan.append(op.Bind(path, root + path, optional=True))
    plan += [op.Bind(os.path.realpath(path), root + path, optional=True) for path in etc]
    plan += [op.File(f"{root}/etc/{name}", text) for name, text in _identity(request["id"]).items()]
    plan += [op.Bind(f"/dev/{name}", f"{root}/dev/{name}", writable=True, device=True) for name in DEVICES]
    plan += [op.Symlink(f"{root}/dev/fd", "/proc/self/fd")]
    plan += [
        op.Symlink(f"{root}/dev/{name}", f"/proc/self/fd/{n}")
        for n, name in enumerate(("stdin", "stdout", "stderr"))
    ]
    plan += [op.Bind(path, root + path, optional=True) for path in HARDWARE]
    plan += [op.Tmpfs(root + path, 0o1777, scratch) for path in ("/tmp", "/dev/shm")]
    plan += [op.Directory(root + "/run"), op.Symlink(root + "/var/tmp", "../tmp")]
    plan += [op.Proc(root + "/proc")]
    plan += [op.Cover(f"{root}/proc/{name}") for name in PROC_READ_ONLY]
    plan += [op.Uncover(f"{root}/proc/sys/user")]  # for NoUserNamespaces
    plan += [op.Cover(f"{root}/proc/{name}", by="/dev/null") for name in PROC_HIDDEN]
    # outer before inner, so that a mount inside another is not hidden by it
    plan += [op.Bind(path, root + path, writable=writable) for path, writable in sorted(request["mounts"])]
    plan.append(op.PivotRoot(root))
    return plan


def _identity(name: str) -> dict[str, str]:
    return {
        "passwd": "root:x:0:0:root:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n",
        "group": "root:x:0:\nnogroup:x:65534:\n",
        "hosts": f"127.0.0.1 localhost {name}\n::1 localhost {name}\n",
        "hostname": f"{name}\n",
    }


def _build(request: dict[str, Any], control: int, handed: int, report: int) -> None:
    """The builder: a child of the launcher, gone when pid 1 is on its own."""
    groups = cgroups.restored(request["groups"]) if request["groups"] else None
    if groups is not None:
        try:
            groups.add_container(request["id"], limit=request["limit"], pids=request["pids"], cpus=request["cpus"])
            groups.enter_container(request["id"])
        except OSError as error:
            raise op.OperationFailed("make its cgroup", str(error)) from error
    op.run(isolation(request))
    if request["egress"]:
        op.run([op.HandOutListener(request["egress"], handed)])
    proc = os.open("/proc", os.O_PATH)  # pid 1 moves this process too when it changes the root of their mounts
    asks, asked = os.pipe()
    answers, answer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(asks)
        os.close(answer)
        _in_child(report, lambda: _become_manager(request, control, report, asked, answers))
    os.close(asked)
    _report(report, pid=pid)
    if request["privileged"] and os.read(asks, 1):  # nothing to read: it failed and has said why
        for kind in ("uid", "gid"):
            try:
                op.write(f"{pid}/{kind}_map", request["ids"], dir_fd=proc)
            except OSError as error:
                raise op.OperationFailed(f"map its {kind}s to {request['uid_base']}", str(error)) from error
        os.write(answer, b"+")


def _become_manager(request: dict[str, Any], control: int, report: int, ask: int, answer: int) -> None:
    op.run(filesystem(request))
    keep: frozenset[int] = frozenset()
    if request["privileged"]:
        op.run([op.Unshare(syscalls.NEWUSER, "user")])
        os.write(ask, b"?")
        if not os.read(answer, 1):
            os._exit(1)  # the builder failed and has said why
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        keep = frozenset((syscalls.CAP_SETUID, syscalls.CAP_SETGID, syscalls.CAP_KILL))
    op.run([op.NoUserNamespaces(), op.DropCapabilities(keep)])
    _only_these_descriptors(control, report)
    if request["filter"]:
        seccomp.install()
    argv = [request["python"], "-I", "-S", request["manager"], str(CONTROL)]
    environ = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", **request["environ"]}
    try:
        os.execve(argv[0], argv, environ)
    except OSError as error:
        _report(REPORT, operation=f"start {argv[0]}", error=str(error))
        os._exit(1)


def _only_these_descriptors(control: int, report: int) -> None:
    """0 and 1 are /dev/null, 2 stays the server's stderr: there a manager that cannot start says why. Tenants get
    neither (it hands its own descriptors to nobody)."""
    high = [os.dup(fd) for fd in (control, report)]
    while min(high) <= REPORT:  # out of the way of the numbers they are about to get
        high = [os.dup(fd) for fd in high]
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(high[0], CONTROL)
    os.dup2(high[1], REPORT, inheritable=False)  # its end tells the launcher that the exec has worked
    os.closerange(REPORT + 1, 256)


def _in_child(report: int, work: Any) -> None:
    """Run `work` in a forked child and never come back from it."""
    code = 1
    try:
        work()
        code = 0
    except op.OperationFailed as failed:
        _report(report, operation=failed.operation, error=failed.error)
    except BaseException:  # noqa: BLE001 # whatever it is, the child must neither hide it nor go on as a launcher
        _report(report, operation="build", error=traceback.format_exc(limit=-3))
    finally:
        os._exit(code)


def _report(report: int, **what: Any) -> None:
    os.write(report, json.dumps(what).encode() + b"\n")


class _Birth:
    """A container being built."""

    def __init__(self, id_: str, builder: int) -> None:
        self.id = id_
        self.builder = builder
        self.said = b""


class Launcher:
    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self._groups: cgroups.Groups | None = None
        self._births: dict[int, _Birth] = {}  # by the descriptor of its report
        self._running: dict[int, str] = {}  # pid of a manager -> container
        self._early: dict[int, int] = {}  # exits seen before the report was
        self._builders: set[int] = set()
        self._poll = select.poll()

    def serve(self) -> None:
        """Until the server's end of the socket is closed; then, or if this fails, end everything."""
        try:
            self._serve()
        finally:
            self._end_all()

    def _serve(self) -> None:
        wake, woken = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        self._poll.register(self._server, select.POLLIN)
        self._poll.register(wake, select.POLLIN)
        while True:
            for fd, _ in self._poll.poll():
                if fd == wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake, 4096)
                elif fd in self._births:
                    self._listen(fd)
                elif not self._request():
                    return
            self._reap()

    def _request(self) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(self._server, LARGEST, 4)
        except ConnectionResetError:  # how a server ends that was killed before it read all it was told
            return False
        if not data:
            return False
        request = json.loads(data)
        control, handed = fds
        if self._groups is None and request["groups"]:
            self._groups = cgroups.restored(request["groups"])
        reading, report = os.pipe()
        builder = os.fork()
        if builder == 0:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            self._server.close()
            os.close(reading)
            _in_child(report, lambda: _build(request, control, handed, report))
        os.close(control)
        os.close(handed)
        os.close(report)
        self._builders.add(builder)
        self._births[reading] = _Birth(request["id"], builder)
        self._poll.register(reading, select.POLLIN)
        return True

    def _listen(self, reading: int) -> None:
        """Its end without a failure said: pid 1 has become the manager."""
        birth = self._births[reading]
        if said := os.read(reading, 65536):
            birth.said += said
            return
        self._poll.unregister(reading)
        os.close(reading)
        del self._births[reading]
        lines = [json.loads(line) for line in birth.said.splitlines()]
        pid = next((line["pid"] for line in lines if "pid" in line), None)
        failed = next((line for line in lines if "error" in line), None)
        if pid is not None:
            self._running[pid] = birth.id
        if failed is None and pid is not None and pid not in self._early:
            pidfd = os.pidfd_open(pid)
            self._tell([pidfd], event="created", id=birth.id, pid=pid)
            os.close(pidfd)
        else:
            failed = failed or {"operation": "build", "error": "its builder was killed"}
            if pid is not None and pid not in self._early:
                os.kill(pid, signal.SIGKILL)
            self._forget(birth.id)
            self._tell([], event="failed", id=birth.id, **failed)
        if pid in self._early:
            self._gone(pid, self._early.pop(pid))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._running:
                self._gone(pid, status)
            elif pid in self._builders:
                self._builders.discard(pid)
            elif self._births:
                self._early[pid] = status

    def _gone(self, pid: int, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        how = {"code": code} if code >= 0 else {"signal": -code}
        self._tell([], event="exited", id=self._running.pop(pid), **how)

    def _tell(self, fds: Sequence[int], **what: Any) -> None:
        with contextlib.suppress(OSError):  # the server is gone: the next poll says so
            socket.send_fds(self._server, [json.dumps(what).encode()], list(fds))

    def _forget(self, container: str) -> None:
        if self._groups is not None:
            for _ in range(200):
                try:
                    self._groups.kill(container)
                    self._groups.remove_container(container)
                    return
                except OSError:
                    self._reap()
                    time.sleep(0.005)

    def _end_all(self) -> None:
        for pid in (*self._running, *self._builders):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._groups is None:
            return
        # All are killed before the first is removed: a process may sit in the groups of one container and in the
        # pid namespace of another, whose end waits for it while it is frozen.
        containers = self._groups.containers()
        for container in containers:
            with contextlib.suppress(OSError):  # `_forget` insists
                self._groups.kill(container)
        for container in containers:
            self._forget(container)
        with contextlib.suppress(OSError):  # not empty: the next start of the server tries again
            self._groups.remove()


def main(fd: int) -> None:
    os.setsid()
    os.chdir("/")
    os.umask(0o022)
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    Launcher(socket.socket(fileno=fd)).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
