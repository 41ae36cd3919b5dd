"""The control groups of this process, by which containers and batch systems limit it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_OF_PROCESS = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


def groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """The folder of each of this process's groups in which `controller` (`memory`, `cpu`) may set a limit,
    and whether it is in the unified hierarchy (version 2)."""
    try:
        entries = [line.split(":", 2) for line in _OF_PROCESS.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in entries:
        unified = controllers == ""
        if not unified and controller not in controllers.split(","):
            continue
        root = _ROOT if unified else _ROOT / controller
        # A container sees its own group as the root; a job on a machine is some levels below it.
        group = Path(f"{root}{path}")
        for folder in dict.fromkeys((group, *group.parents, root)):
            if folder.is_relative_to(root):
                yield folder, unified
