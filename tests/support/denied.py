"""Runs a command to which the kernel denies system calls, as containers and hardened systems do.

`python -m tests.support.denied NAME,NAME ARGUMENTS`: `python -m fmstune ARGUMENTS` without these calls.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

NUMBERS = {
    "x86_64": {
        "memfd_create": 319, "setpriority": 141, "getpriority": 140, "sched_setscheduler": 144,
        "sched_setaffinity": 203, "pidfd_open": 434, "fallocate": 285, "sync_file_range": 277, "linkat": 265,
        "copy_file_range": 326, "statfs": 137, "close_range": 436, "madvise": 28, "utimensat": 280,
    },
    "aarch64": {
        "memfd_create": 279, "setpriority": 140, "getpriority": 141, "sched_setscheduler": 119,
        "sched_setaffinity": 122, "pidfd_open": 434, "fallocate": 47, "sync_file_range": 84, "linkat": 37,
        "copy_file_range": 285, "statfs": 43, "close_range": 436, "madvise": 233, "utimensat": 88,
    },
}.get(platform.machine(), {})  # fmt: skip
"""The numbers of calls that fmstune, torch or an SDK makes, and that may be denied; from asm/unistd.h."""
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # from linux/bpf_common.h
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000  # from linux/seccomp.h
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2  # from linux/prctl.h


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def deny(calls: list[str]) -> None:
    """Let these calls fail with EPERM in this process and in those that it starts."""

    def instruction(code: int, value: int, otherwise: int = 0) -> bytes:
        return struct.pack("HBBI", code, 0, otherwise, value)

    code = instruction(_LOAD, 0)  # the number of the call
    for call in calls:
        code += instruction(_IF_EQUAL, NUMBERS[call], 1) + instruction(_RETURN, _FAIL | errno.EPERM)
    code += instruction(_RETURN, _ALLOW)
    program = _Program(len(code) // 8, ctypes.cast(code, ctypes.c_void_p).value)
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SECCOMP, _FILTER, ctypes.byref(program), 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "seccomp")


if __name__ == "__main__":
    deny(sys.argv[1].split(","))
    os.execv(sys.executable, [sys.executable, "-m", "fmstune", *sys.argv[2:]])
