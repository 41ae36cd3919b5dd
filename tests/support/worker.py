"""Workers of pytest-xdist, forked from one interpreter that has the imports of all test modules.

Each would otherwise import torch, TRL and the SDKs, ten seconds of CPU before its first test. execnet starts
`python -u -c CODE` and talks to it over its standard streams: here that is this file, which passes its
streams to the warm interpreter (`tests.support.forkserver`), whose child runs the same code; this one ends
with it.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import sys
from pathlib import Path


def hand_over(path: str, *arguments: str) -> int:
    """Let a process forked from the interpreter at `path` take the place of this one; returns its exit
    code."""
    request = {
        "module": str(Path(__file__).resolve()), "arguments": arguments, "cwd": str(Path.cwd()),
        "environment": dict(os.environ),
    }  # fmt: skip
    with socket.socket(socket.AF_UNIX) as answer:
        answer.connect(path)
        text = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(answer, [text], [0, 1, 2])
        answer.sendall(text[sent:])
        # Readers of these streams have to see the end of the worker, not of this process.
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        with answer.makefile() as lines:
            _, code = lines.readline(), lines.readline()
    return int(code or 1) % 256


if __name__ == "__main__":
    if sys.argv[1] == "-u":  # in the forked process
        exec(sys.argv[-1])
        # Those of SDKs close storages that tests have removed; Aim's waits forever if that fails.
        atexit._clear()
    else:
        sys.exit(hand_over(*sys.argv[1:]))
