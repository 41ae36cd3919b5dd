"""fmstune as it is installed: its entry points, which torchrun reads, of this tree's pyproject.toml."""

from __future__ import annotations

import os
from pathlib import Path

import tomli

from tests.cli.test_train import ROOT


def installed(directory: Path) -> str:
    """A PYTHONPATH with this tree and its entry points, as the installer would write them there.

    The tests then do not depend on when, and from which tree, the package was installed where they run.
    """
    project = tomli.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    folder = directory / "installed" / "fmstune-0.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: fmstune\nVersion: 0\n")
    (folder / "entry_points.txt").write_text("\n".join(lines))
    return os.pathsep.join([str(ROOT), str(folder.parent)])
