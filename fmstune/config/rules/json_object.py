"""Read the JSON file of a setting that transformers takes as a table or as a path, and say what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmstune.config.check.suggest import similar_file
from fmstune.text import shown, shown_path


def table_or_file(key: str, given: Any, base: Path) -> tuple[Mapping[str, Any], str | None]:
    """The table of a setting that may also name a JSON file, or what is wrong with the file."""
    return (given, None) if isinstance(given, Mapping) else _object(key, str(given), base)


def _object(key: str, written: str, base: Path) -> tuple[Mapping[str, Any], str | None]:
    path = base / written
    try:
        found = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        return {}, f"{key} = {shown(written)}: there is no such file.{similar_file(Path(written), base)}"
    except OSError as error:
        return {}, f"{key} = {shown(written)} cannot be read: {error.strerror or error}."
    except (ValueError, RecursionError) as error:
        at = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        why = getattr(error, "msg", None) or "it is not UTF-8 text"
        return {}, f"{key}: {shown_path(path)}{at}: invalid JSON: {why}."
    if not isinstance(found, dict):
        return {}, f"{key}: {shown_path(path)} must contain one object: {{...}}."
    return found, None
