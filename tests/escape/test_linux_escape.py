"""A tenant that wants out of a `linux` container, or into its neighbour. Every attempt is made by code that runs
as a function would, and has to fail in the kernel."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from instainfer.sandbox import seccomp
from instainfer.sandbox.base import Mount
from instainfer.sandbox.egress import own_addresses
from instainfer.sandbox.linux import LinuxSandbox
from tests.contract.sandbox_helpers import VARIANTS, Contract, World

escape = Contract([variant for variant in VARIANTS if variant.values[0] != "process"])

#: ctypes wrappers that answer with the name of the error.
CALLS = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    if getattr(libc, name)(*args) >= 0:
        return "done"
    return errno.errorcode[ctypes.get_errno()]
def result(do, *args):
    "Done, or the name of the errno."
    try:
        do(*args)
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]
    except ValueError:  # what `resource` makes of EPERM
        return "EPERM"
"""


async def attempts(
    world: World, code: str, mounts: Sequence[Mount] = (), egress: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Run code that ends with `say({attempt: outcome})`."""
    box = await world.box(f"c{len(world.boxes) + 1}", mounts=mounts, egress=egress)
    child = await box.run("hostile", CALLS + code)
    outcome = await child.hear()
    assert isinstance(outcome, dict)
    return outcome


@escape()
async def reads_files_of_the_host(world: World) -> None:
    secret = world.path / "secret"
    secret.write_text("secret")
    secret.chmod(0o644)
    code = f"""
secret = "{secret}"
say({{
    "plain": result(read, secret),
    "root of pid 1": result(read, "/proc/1/root" + secret),
    "own root": result(read, "/proc/self/root" + secret),
    "dots": result(read, "/" + "../" * 40 + secret),
    "shadow": result(read, "/etc/shadow"),
    "disk": result(os.listdir, "/dev/disk"),
    "cwd of pid 1": result(read, "/proc/1/cwd/" + secret),
    "cgroups": result(os.listdir, "/sys/fs/cgroup"),
    "old root": result(read, "/.." + secret),
}})
"""
    assert set((await attempts(world, code)).values()) <= {"ENOENT", "EACCES", "EPERM"}


@escape()
async def makes_read_only_mounts_writable(world: World) -> None:
    shown = world.path / "shown"
    shown.mkdir()
    (shown / "weights").write_text("good")
    shown.chmod(0o777)
    (shown / "weights").chmod(0o666)
    code = f"""
RDONLY, REMOUNT, BIND = 1, 32, 4096
shown = b"{shown}"
say({{
    "write": result(spill, "{shown}/weights", "bad"),
    "create": result(spill, "{shown}/more", "bad"),
    "remount": call("mount", b"none", shown, b"none", REMOUNT | BIND, None),
    "remount root": call("mount", b"none", b"/", b"none", REMOUNT | BIND, None),
    "bind": call("mount", shown, b"/tmp", b"none", BIND, None),
    "tmpfs": call("mount", b"tmpfs", b"/usr", b"tmpfs", 0, None),
    "umount": call("umount2", shown, 2),
    "umount proc": call("umount2", b"/proc/sys", 2),
    "truncate": result(os.truncate, "{shown}/weights", 0),
    "chmod": result(os.chmod, "{shown}/weights", 0o777),
    "link": result(os.symlink, "/tmp/x", "{shown}/link"),
    "usr": result(spill, "/usr/bin/sh", "bad"),
    "setattr": call("syscall", 442, -100, shown, 0x8000, (ctypes.c_uint64 * 4)(0, RDONLY, 0, 0), 32),
    "reopen": result(lambda: os.open("/proc/self/fd/%d" % os.open("{shown}/weights", os.O_RDONLY), os.O_RDWR)),
}})
"""
    outcome = await attempts(world, code, mounts=[Mount(shown)])
    assert set(outcome.values()) <= {"EPERM", "EACCES", "EROFS"}, outcome
    assert (shown / "weights").read_text() == "good"
    assert [path.name for path in shown.iterdir()] == ["weights"]


@escape()
async def gets_capabilities(world: World) -> None:
    """Namespaces of its own would give it all of them, over a kernel that has often been broken that way."""
    code = """
flags = {"user": 0x10000000, "mount": 0x20000, "net": 0x40000000, "pid": 0x20000000, "both": 0x10020000}
outcome = {name: call("unshare", flag) for name, flag in flags.items()}
outcome["clone"] = call("syscall", 56 if os.uname().machine == "x86_64" else 220, 0x10000000 | 17, 0, 0, 0, 0)
outcome["limit"] = result(spill, "/proc/sys/user/max_user_namespaces", "1000")
outcome["chroot"] = result(os.chroot, "/tmp")
outcome["device"] = result(os.mknod, "/tmp/disk", 0o60666, os.makedev(254, 0))
outcome["character device"] = result(os.mknod, "/tmp/mem", 0o20666, os.makedev(1, 1))
outcome["reboot"] = call("reboot", 0xFEE1DEAD)
outcome["hostname"] = call("sethostname", b"mine", 4)
outcome["nice"] = result(os.setpriority, os.PRIO_PROCESS, 0, -20)
outcome["hard limit"] = result(__import__("resource").setrlimit, 7, (1 << 30, 1 << 30))
outcome["clock"] = result(__import__("time").clock_settime, 0, 0)
say(outcome)
"""
    outcome = await attempts(world, code)
    assert set(outcome.values()) <= {"EPERM", "EACCES", "ENOSPC", "EINVAL"}, outcome
    first = "EPERM" if seccomp.supported() else "ENOSPC"  # the filter, and the limit that is there without it
    assert outcome["user"] == outcome["both"] == outcome["clone"] == first


@escape("calls")
async def makes_calls_that_lead_out(world: World) -> None:
    """Each is tried by its number, with arguments that are not looked at before the filter is."""
    machine = os.uname().machine
    numbers = {name: both[machine != "x86_64"] for name, both in (seccomp._DENIED | seccomp._ABSENT).items()}
    known = {name: number for name, number in numbers.items() if number is not None}
    code = f"""
outcome = {{name: call("syscall", number, 0, 0, 0, 0, 0, 0) for name, number in {known!r}.items()}}
import fcntl, socket
for name in ("AF_VSOCK", "AF_ALG", "AF_PACKET"):
    outcome[name] = result(socket.socket, getattr(socket, name), socket.SOCK_STREAM)
for name in ("AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"):
    kind = socket.SOCK_RAW if name == "AF_NETLINK" else socket.SOCK_STREAM
    outcome[name] = result(socket.socket, getattr(socket, name), kind)
outcome["type"] = result(fcntl.ioctl, 0, 0x5412, b"x")
outcome["foreign"] = call("syscall", 0x40000000 | 39)
outcome["status"] = "filtered" if "Seccomp:\\t2" in read("/proc/self/status") else "not filtered"
import threading
seen = []
thread = threading.Thread(target=seen.append, args=("works",))  # glibc's clone3 falls back
thread.start(); thread.join()
outcome["thread"] = seen[0]
outcome["child"] = __import__("subprocess").run(["true"]).returncode
say(outcome)
"""
    outcome = await attempts(world, code)
    for name in known:
        assert outcome.pop(name) == ("ENOSYS" if name in seccomp._ABSENT else "EPERM"), name
    for name in ("AF_VSOCK", "AF_ALG", "AF_PACKET"):
        assert outcome.pop(name) == "EAFNOSUPPORT", name
    for name in ("AF_UNIX", "AF_INET", "AF_NETLINK"):
        assert outcome.pop(name) == "done", name
    assert outcome.pop("AF_INET6") in ("done", "EAFNOSUPPORT")  # a machine may lack it
    assert outcome.pop("foreign") in ("ENOSYS", "EPERM")
    assert outcome == {"type": "EPERM", "status": "filtered", "thread": "works", "child": 0}


@escape("pids")
async def breeds(world: World) -> None:
    """A fork bomb ends at the limit, and the container with it."""
    code = """
import time
born = 0
while True:
    try:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        born += 1
    except OSError as error:
        say({"born": born, "error": errno.errorcode[error.errno]})
        break
"""
    outcome = await attempts(world, code)
    assert outcome["error"] == "EAGAIN"
    assert outcome["born"] < 256


@escape()
async def fills_what_it_can_write_to(world: World) -> None:
    code = """
import shutil
outcome = {}
for where in ("/tmp", "/dev/shm"):
    try:
        with open(where + "/big", "wb") as file:
            for _ in range(1 << 12):
                file.write(bytes(1 << 20))
        outcome[where] = "4 GB"
    except OSError as error:
        outcome[where] = errno.errorcode[error.errno]
    finally:
        os.unlink(where + "/big")
written = []
for path, _, _ in os.walk("/"):
    if path.startswith(("/proc", "/tmp", "/dev/shm")):
        continue
    if os.access(path, os.W_OK):
        written.append(path)
say({**outcome, "elsewhere": written})
"""
    box = await world.box(limit=256 << 20, scratch=16 << 20)
    child = await box.run("hostile", CALLS + code)
    assert await child.hear() == {"/tmp": "ENOSPC", "/dev/shm": "ENOSPC", "elsewhere": []}


@escape()
async def changes_who_it_is(world: World) -> None:
    code = """
say({
    "uid": result(os.setuid, os.getuid() + 1),
    "gid": result(os.setgid, os.getgid() + 1),
    "groups": result(os.setgroups, [0]),
    "map": result(spill, "/proc/self/uid_map", "0 0 1"),
    "own": result(os.chown, "/tmp", 0, 0) if os.getuid() else "EPERM",
    "capabilities": "EPERM" if int(read("/proc/self/status").split("CapEff:")[1].split()[0], 16) == 0 else "some",
    "privileges": "EPERM" if "NoNewPrivs:\\t1" in read("/proc/self/status") else "new ones",
})
"""
    assert set((await attempts(world, code)).values()) <= {"EPERM", "EINVAL", "EACCES"}


@escape()
async def gains_by_setuid_or_device_files(world: World) -> None:
    """What the host has of them is seen inside, and gives nothing."""
    code = """
NODEV = 4
flags = {path: os.statvfs(path).f_flag for path in ("/usr", "/tmp", "/dev/shm")}
say({path: bool(flag & os.ST_NOSUID) and bool(flag & NODEV) for path, flag in flags.items()})
"""
    assert await attempts(world, code) == {"/usr": True, "/tmp": True, "/dev/shm": True}


@escape()
async def reaches_sockets_of_the_host(world: World) -> None:
    abstract = f"\0instainfer-escape-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as named, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(abstract)
        listener.listen()
        path = world.path / "socket"
        named.bind(str(path))
        named.listen()
        path.chmod(0o777)
        code = f"""
import socket
say({{
    "abstract": result(socket.socket(socket.AF_UNIX).connect, {abstract!r}),
    "named": result(socket.socket(socket.AF_UNIX).connect, "{path}"),
    "abroad": result(socket.create_connection, ("192.0.2.1", 80), 1),
    "raw": result(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1),
    "packet": result(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0),
}})
"""
        assert await attempts(world, code) == {
            "abstract": "ECONNREFUSED",
            "named": "ENOENT",
            "abroad": "ENETUNREACH",
            "raw": "EPERM",
            "packet": "EAFNOSUPPORT" if seccomp.supported() else "EPERM",
        }


#: What the proxy answers, the status alone where it is a refusal; over sockets, since no library is to help.
ASK = """
import socket
def ask(line, more=""):
    try:
        with socket.create_connection(("127.0.0.1", 3128), 10) as way:
            way.sendall((line + " HTTP/1.1\\r\\n" + more + "\\r\\n").encode())
            said = b""
            while got := way.recv(65536):
                said += got
        return said.split(b" ")[1].decode() if b"Established" not in said else said.decode()
    except OSError as error:
        return type(error).__name__
"""


@escape()
async def asks_its_proxy_for_what_it_may_not_have(world: World) -> None:
    """Any public address is allowed, and the server, its neighbours and the metadata service are none."""
    reached: list[str] = []

    async def never(address: str, port: int) -> Any:
        reached.append(address)
        raise ConnectionRefusedError

    assert isinstance(world.sandbox, LinuxSandbox)
    world.sandbox.connect = never
    neighbour = await world.box("neighbour", egress=("*",))
    child = await neighbour.run("listens", """
        import socket
        server = socket.create_server(("0.0.0.0", 8080))
        say("up")
        server.accept()
    """)  # fmt: skip
    assert await child.hear() == "up"
    own = sorted(own_addresses())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = (
            ASK
            + f"""
own = {own!r}
say({{
    "gateway": ask("CONNECT 127.0.0.1:{port}"),
    "by name": ask("CONNECT localhost:{port}"),
    "as a number": ask("CONNECT 2130706433:{port}"),
    "in short": ask("CONNECT 127.1:{port}"),
    "in hex": ask("CONNECT 0x7f.0.0.1:{port}"),
    "anywhere": ask("CONNECT 0.0.0.0:{port}"),
    "six": ask("CONNECT [::1]:{port}"),
    "mapped": ask("CONNECT [::ffff:127.0.0.1]:{port}"),
    "carried": ask("CONNECT [64:ff9b::7f00:1]:{port}"),
    "plain": ask("GET http://127.0.0.1:{port}/"),
    "with a user": ask("GET http://example.com@127.0.0.1:{port}/"),
    "own": [ask("CONNECT %s:{port}" % (f"[{{a}}]" if ":" in a else a)) for a in own],
    "metadata": ask("GET http://169.254.169.254/latest/meta-data/"),
    "private": ask("CONNECT 10.0.0.1:80"),
    "shared": ask("CONNECT 100.64.0.1:80"),
    "neighbour": ask("CONNECT neighbour:8080"),
    "its port": result(socket.create_connection, ("127.0.0.1", 8080), 2),
    "past it": result(socket.create_connection, ("93.184.216.34", 80), 2),
    "to the server": result(socket.create_connection, ("127.0.0.1", {port}), 2),
}})
"""
        )
        said = await attempts(world, code, egress=("*",))
    assert (said.pop("its port"), said.pop("to the server")) == ("ECONNREFUSED", "ECONNREFUSED")
    assert said.pop("past it") == "ENETUNREACH"
    assert set(said.pop("own")) == {"403"}
    assert said.pop("neighbour") == "502"  # nobody knows this name
    assert said.pop("with a user") == "400"
    assert set(said.values()) == {"403"}, said
    assert not reached


@escape()
async def reaches_what_its_rules_name(world: World) -> None:
    reached = []

    async def there(address: str, port: int) -> Any:
        reached.append((address, port))
        return await asyncio.open_connection(*server.sockets[0].getsockname())

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"Established " + await reader.readline())
        writer.close()

    assert isinstance(world.sandbox, LinuxSandbox)
    world.sandbox.connect = there
    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        code = (
            ASK
            + """
say({
    "tunnel": ask("CONNECT 93.184.216.34:443", "\\r\\nhello\\r\\n"),
    "plain": ask("GET http://93.184.216.34/x?y"),
    "port": ask("CONNECT 93.184.216.34:22"),
    "other": ask("CONNECT 93.184.216.35:443"),
})
"""
        )
        said = await attempts(world, code, egress=("93.184.216.34:443", "93.184.216.34:80"))
    assert (said["port"], said["other"]) == ("403", "403")
    assert said["tunnel"].endswith("Established hello\r\n")
    assert said["plain"] == "Established GET /x?y HTTP/1.1\r\n"
    assert reached == [("93.184.216.34", 443), ("93.184.216.34", 80)]


@escape()
async def attacks_its_manager(world: World) -> None:
    code = """
import signal
def steal():
    for name in os.listdir("/proc/1/fd"):
        os.open("/proc/1/fd/" + name, os.O_RDWR)
buffer = ctypes.create_string_buffer(8)
here, there = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8), (ctypes.c_void_p * 2)(4096, 8)
PTRACE_ATTACH, PIDFD_OPEN, PIDFD_GETFD = 16, 434, 438
pidfd = libc.syscall(PIDFD_OPEN, 1, 0)
say({
    "descriptors": result(steal),
    "memory": result(read, "/proc/1/mem"),
    "environment": result(read, "/proc/1/environ"),
    "trace": call("ptrace", PTRACE_ATTACH, 1, None, None),
    "take a descriptor": call("syscall", PIDFD_GETFD, pidfd, 3, 0) if pidfd >= 0 else "EPERM",
    "read": call("process_vm_readv", 1, here, 1, there, 1, 0),
})
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV):
    attempt(os.kill, 1, number)
attempt(os.kill, -1, signal.SIGKILL)
say({"alive": True})
"""
    box = await world.box()
    child = await box.run("hostile", CALLS + code)
    outcome = await child.hear()
    assert set(outcome.values()) <= {"EPERM", "EACCES", "ENOENT", "ESRCH"}, outcome
    # pid 1 of a namespace gets no signal from inside that it has no handler for
    assert await child.hear() == {"alive": True}
    other = await box.run("next", "say(1)")
    assert await other.hear() == 1
    assert not box.lost.done()


@escape()
async def plays_with_links_in_tmp(world: World) -> None:
    """A link that leads out leads nowhere: the platform writes nothing to a container's /tmp, and what it mounts
    is fixed before a tenant runs."""
    target = world.path / "target"
    target.write_text("untouched")
    target.chmod(0o666)
    code = f"""
os.symlink("{target}", "/tmp/link")
os.symlink("/proc/1/root{target}", "/tmp/deep")
os.mkdir("/tmp/mine")
os.symlink("/", "/tmp/mine/root")
say({{
    "link": result(read, "/tmp/link"),
    "deep": result(spill, "/tmp/deep", "bad"),
    "round": result(spill, "/tmp/mine/root{target}", "bad"),
    "replace": result(os.rename, "/tmp/mine", "/usr/lib"),
}})
"""
    outcome = await attempts(world, code)
    assert set(outcome.values()) <= {"ENOENT", "EACCES", "EPERM", "EXDEV", "EROFS"}, outcome
    assert target.read_text() == "untouched"


@escape()
async def learns_about_the_host(world: World) -> None:
    code = """
def line(path):
    return attempt(read, path)
say({
    "hostname": os.uname().nodename,
    "etc hostname": line("/etc/hostname").strip(),
    "users": line("/etc/passwd").count("\\n"),
    "processes": len([n for n in os.listdir("/proc") if n.isdigit()]),
    "cgroup": {part.rpartition(":")[2] for part in line("/proc/self/cgroup").split()},
    "keys": line("/proc/keys"),
    "kcore": line("/proc/kcore"),
    "symbols": line("/proc/kallsyms")[:20],
    "interfaces": len(line("/proc/net/dev").splitlines()) - 2,
    "mounts": [w for w in line("/proc/self/mountinfo").split() if "/state/root" in w],
    "environment": sorted(os.environ),
})
"""
    seen = await attempts(world, code)
    assert seen["hostname"] == seen["etc hostname"] == "c1"
    assert seen["users"] == 2
    assert int(seen["processes"]) <= 2
    assert int(seen["interfaces"]) == 1
    assert seen["keys"] in {"PermissionError", ""}
    assert seen["kcore"] in {"PermissionError", "FileNotFoundError", ""}
    assert seen["symbols"] in {"PermissionError", "FileNotFoundError", ""}
    assert seen["mounts"] == []
    assert set(seen["environment"]) <= {"PATH", "WORD", "LC_CTYPE", "INSTAINFER_SANDBOX"}
    if world.variant != "rootless":  # whose processes stay in the groups of the server's user, there is no other
        assert all(path.count("/") <= 2 and "instainfer-" not in path for path in seen["cgroup"]), seen["cgroup"]


@pytest.mark.parametrize(("variant", "scenario"), escape.cases())
def test_escape(variant: str, scenario: str) -> None:
    escape.play(variant, scenario)


def test_the_attempts_would_succeed_outside(tmp_path: Path) -> None:
    """A check of the tests: the same code on the host reads the file."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    assert Path(f"/proc/self/root{secret}").read_text() == "secret"
