"""The skeleton of a tracker's package: a small whole tracker, its test, and the entry point that names it."""

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
    """Write the package of a new tracker into a folder, by default `fmstune-NAME` here; the files of it.
    Raises `ConfigError` for a name that cannot be one, and where a file is there already."""
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ConfigError(
            f"{name!r} cannot be a tracker's name: write small letters and digits, with _ or - between them."
        )
    if name in BUILT_IN:
        raise ConfigError(f"{name} is a tracker of fmstune's own; choose another name.")
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
            f"{there[0]} is there already, and is not overwritten; name another directory: "
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
