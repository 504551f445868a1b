"""Which system calls a container has: all but those that lead out of it, or to parts of the kernel that no
function needs and that have often been broken.

A classic BPF program that the manager gets before its exec and that everything in the container inherits; there is
no way back from it. What is denied fails as it does where the kernel lacks it or the caller may not, so that
libraries take their other way. Numbers of the two architectures that wheels are made for (arch/x86/entry/syscalls,
include/uapi/asm-generic/unistd.h).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from instainfer.sandbox import syscalls

AVAILABLE = "/proc/sys/kernel/seccomp/actions_avail"

_X86, _ARM = "x86_64", "aarch64"
_AUDIT = {_X86: 0xC000003E, _ARM: 0xC00000B7}
_PLACES = {_X86: 0, _ARM: 1}

#: name -> its numbers on x86_64 and aarch64; None where an architecture has none.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # the kernel itself
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "syslog": (103, 116),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    # the machine's clock and name
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
}
#: As if the kernel were older: glibc and libuv go on without. clone3's flags are out of a filter's sight.
_ABSENT = {
    "clone3": (435, 435),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
_SOCKET, _CLONE, _IOCTL = (41, 198), (56, 220), (16, 29)
#: unix, inet, inet6, netlink. Of the others some do not know network namespaces (vsock: the hypervisor), and some
#: have been a way into the kernel (packet, alg).
_FAMILIES = (1, 2, 10, 16)
_NEW_NAMESPACES = 0x7E020000
_TYPING = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: put words into a terminal's mouth

_LD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_NR, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24  # places in seccomp_data; the lower halves, on little-endian machines
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_X32 = 0x40000000
_MODE_FILTER = 2


def supported() -> bool:
    """Whether this kernel and machine have it."""
    return os.uname().machine in _AUDIT and os.path.exists(AVAILABLE)  # noqa: PTH110 # text, as in operations


def program(machine: str) -> bytes:
    """The filter as an array of struct sock_filter."""
    place = _PLACES[machine]
    made: list[tuple[int, int, int, int]] = []

    def say(code: int, k: int, yes: int = 0, no: int = 0) -> None:
        made.append((code, yes, no, k))

    def refuse(number: int) -> None:
        say(_RET, _ERRNO | number)

    say(_LD, _ARCH)
    say(_JEQ, _AUDIT[machine], 1, 0)
    refuse(errno.ENOSYS)  # a foreign architecture's calls have other numbers
    say(_LD, _NR)
    if machine == _X86:
        say(_JGE, _X32, 0, 1)
        refuse(errno.ENOSYS)
    for names, number in ((_DENIED, errno.EPERM), (_ABSENT, errno.ENOSYS)):
        for numbers in names.values():
            if (nr := numbers[place]) is not None:
                say(_JEQ, nr, 0, 1)
                refuse(number)
    families = len(_FAMILIES)
    say(_JEQ, _SOCKET[place], 0, families + 3)
    say(_LD, _ARG0)
    for n, family in enumerate(_FAMILIES):
        say(_JEQ, family, families - n, 0)
    refuse(errno.EAFNOSUPPORT)
    say(_RET, _ALLOW)
    say(_JEQ, _CLONE[place], 0, 4)
    say(_LD, _ARG0)
    say(_JSET, _NEW_NAMESPACES, 0, 1)
    refuse(errno.EPERM)
    say(_RET, _ALLOW)
    say(_JEQ, _IOCTL[place], 0, 4)
    say(_LD, _ARG1)
    say(_JEQ, _TYPING[0], 1, 0)
    say(_JEQ, _TYPING[1], 0, 1)
    refuse(errno.EPERM)
    say(_RET, _ALLOW)
    return b"".join(struct.pack("HBBI", *one) for one in made)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install() -> None:
    """For this process and all that come of it. Needs PR_SET_NO_NEW_PRIVS. Raises OSError."""
    instructions = program(os.uname().machine)
    kept = ctypes.create_string_buffer(instructions, len(instructions))
    given = _Program(len(instructions) // 8, ctypes.cast(kept, ctypes.c_void_p))
    syscalls.prctl(syscalls.PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(given))
