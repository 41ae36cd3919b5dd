"""Package versions and the commit of the code, which affect a run's result in addition to its
configuration."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

_PACKAGES = (
    "fmstune",
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "tokenizers",
)


def packages() -> dict[str, str]:
    """The versions of Python and of the packages that affect the result."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git(directory: Path) -> dict[str, str | bool]:
    """The commit and branch of the repository that contains `directory`; empty if there is none.

    The remote's address is left out: it may contain a token.
    """
    try:
        commit = _git(directory, "rev-parse", "HEAD")
        branch = _git(directory, "rev-parse", "--abbrev-ref", "HEAD")
        changes = _git(directory, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return {}  # no git, no repository, or one without a commit
    return {"commit": commit, "branch": branch, "dirty": bool(changes)}


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
    return done.stdout.strip()
