"""Create the skeleton of a tracker package: a small complete tracker, its test, and its entry point."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

from fmstune.errors import ConfigError
from fmstune.trackers.registry import BUILT_IN

_TEMPLATES = Path(__file__).with_name("templates")
_NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")


def write_package(name: str, folder: Path | None = None) -> list[Path]:
    """Write a new tracker package into a folder, by default `./fmstune-NAME`, and return its files. Raises
    `ConfigError` for an invalid name, and if a file already exists."""
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ConfigError(
            f"{name!r} is not a valid name for a tracker: use lowercase letters and digits, beginning with a "
            "letter, with _ or - between them, but no keyword of Python."
        )
    if name in BUILT_IN:
        raise ConfigError(f"{name} is one of fmstune's own trackers; choose another name.")
    folder = folder or Path(f"fmstune-{name}")
    words = {
        "name": name,
        "distribution": f"fmstune-{name}".replace("_", "-"),
        "module": f"fmstune_{name}".replace("-", "_"),
        "klass": "".join(part.capitalize() for part in re.split("[_-]", name)),
    }
    files = {
        folder / "README.md": "README.md.txt",
        folder / "pyproject.toml": "pyproject.toml.txt",
        folder / f"{words['module']}.py": "tracker.py.txt",
        folder / f"test_{words['module']}.py": "test.py.txt",
    }
    if there := [path for path in files if path.exists()]:
        raise ConfigError(
            f"{there[0]} already exists, and is not overwritten; choose another directory: "
            f"fmstune trackers new {name} DIR."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, template in files.items():
            text = Template((_TEMPLATES / template).read_text("utf-8")).substitute(words)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise ConfigError(f"{error.filename or folder} cannot be written: {error.strerror}.") from None
    return list(files)
