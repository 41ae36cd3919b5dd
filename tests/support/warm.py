"""The command `fmstune` in processes that cost a fork instead of five seconds of imports.

A `Warm` process has imported what a training needs and used none of it. Each command runs in a child of it,
whose memory is that of a process of its own, and which may have limits.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import runpy
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MODULES = ("fmstune.run.run", "fmstune.training.build", "fmstune.run.preflight")
_NAMES = ("VmRSS", "VmData")


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what its process held then, in bytes: in memory, and as RLIMIT_DATA counts."""

    returncode: int
    stdout: str
    stderr: str
    resident: int
    data: int


class Warm:
    """Runs commands from a process that has the imports."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def fmstune(self, *arguments: str, cwd: Path, limits: Mapping[int, int] | None = None) -> Ended:
        """One command to its end, with the kernel's limits."""
        return self._ask({"arguments": arguments, "cwd": str(cwd), "limits": list((limits or {}).items())})[0]

    def ranks(self, processes: int, *arguments: str, cwd: Path) -> list[Ended]:
        """A command to its end in several processes that train together, as torchrun starts them."""
        return self._ask({"arguments": arguments, "cwd": str(cwd), "limits": [], "ranks": processes})

    def script(self, processes: int, path: Path, cwd: Path) -> list[Ended]:
        """A Python file to its end, in several processes that train together."""
        return self._ask({"script": str(path), "cwd": str(cwd), "limits": [], "ranks": processes})

    def _ask(self, order: Mapping[str, Any]) -> list[Ended]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return [Ended(**one) for one in json.loads(self._process.stdout.readline())]

    def close(self) -> None:
        """End the process; the commands have ended before."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def warm() -> Iterator[Warm]:
    """A `Warm` that ends with the block."""
    made = Warm()
    try:
        yield made
    finally:
        made.close()


def _carried_out(order: Mapping[str, Any]) -> list[dict[str, Any]]:
    processes = order.get("ranks", 1)
    begun = [_begin(order, rank, processes) for rank in range(processes)]
    return [_end(child, printed) for child, printed in begun]


def _begin(order: Mapping[str, Any], rank: int, processes: int) -> tuple[int, Mapping[str, Path]]:
    folder = Path(order["cwd"])
    printed = {name: folder / f".warm-{rank}-{name}" for name in ("stdout", "stderr", "memory")}
    if rank == 0 and processes > 1:
        os.environ["MASTER_PORT"] = str(_free_port())
    child = os.fork()
    if child:
        return child, printed
    code = 99
    try:
        os.chdir(folder)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(printed[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        for kind, most in order["limits"]:
            resource.setrlimit(kind, (most, most))
        if processes > 1:
            for name, number in {"RANK": rank, "WORLD_SIZE": processes}.items():
                os.environ[name] = os.environ[f"LOCAL_{name}"] = str(number)
            os.environ["MASTER_ADDR"] = "127.0.0.1"
        if "script" in order:
            runpy.run_path(order["script"], run_name="__main__")
            code = 0
        else:
            code = _run(order["arguments"])
        printed["memory"].write_text(Path("/proc/self/status").read_text())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end(child: int, printed: Mapping[str, Path]) -> dict[str, Any]:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    texts = {name: file.read_text() if file.exists() else "" for name, file in printed.items()}
    for file in printed.values():
        file.unlink(missing_ok=True)
    lines = dict(line.split(":", 1) for line in texts.pop("memory").splitlines())
    held = [int(lines[name].split()[0]) * 1024 if name in lines else 0 for name in _NAMES]
    return {"returncode": code, **texts, "resident": held[0], "data": held[1]}


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _run(arguments: list[str]) -> int:
    from fmstune.cli.main import main

    try:
        main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1


def main() -> None:
    """Import what a training needs, and run commands."""
    import importlib

    from fmstune.launch.environment import quiet_libraries

    answers = os.fdopen(os.dup(1), "w")
    quiet_libraries()  # as the command does before it imports these
    for module in _MODULES:
        importlib.import_module(module)
    for line in sys.stdin:
        answers.write(json.dumps(_carried_out(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
