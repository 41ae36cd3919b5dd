"""Prints the state of a process started with `python -m`, or ends as its argument says."""

from __future__ import annotations

import atexit
import gc
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

LIMITS = ("RLIMIT_NOFILE", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_CORE", "RLIMIT_AS")


def facts() -> dict[str, object]:
    """Everything that could differ between forked and started processes, and must not."""
    handlers = {signum.name: str(signal.getsignal(signum)) for signum in signal.Signals}
    mask = os.umask(0o022)
    return {
        "arguments": sys.argv,
        "command": sys.orig_argv[1:],
        "name": __name__,
        "directory": str(Path.cwd()),
        "path": sys.path,
        "environment": dict(os.environ),
        "descriptors": sorted(int(path.name) for path in Path("/proc/self/fd").iterdir())[:3],
        "handlers": {name: handler.partition(" at ")[0] for name, handler in handlers.items()},
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in LIMITS},
        "umask": mask,
        "group": os.getpgrp(),
        "streams": [
            stream and (stream.encoding, stream.errors, stream.isatty(), stream.line_buffering)
            for stream in (sys.stdin, sys.stdout, sys.stderr)
        ],
        "logging": (logging.root.level, len(logging.root.handlers), logging.root.manager.disable),
        "threads": threading.active_count(),
        "collects": gc.isenabled(),
    }


if __name__ == "__main__":
    how = sys.argv[1]
    if how == "wait":
        Path("waits").touch()
        time.sleep(600)
    if how.startswith("-"):
        Path("facts.json").write_text(json.dumps(facts()))
        sys.exit()
    atexit.register(print, "at exit")
    if how == "raise":
        raise ValueError("raised")
    sys.exit(int(how) if how.isdigit() else how)
