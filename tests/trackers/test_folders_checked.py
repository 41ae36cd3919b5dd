"""Checks of trackers that write to a folder which cannot be written to: each names the place and the remedy,
and none shows a raw error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmstune.trackers.unusable import file_obstacle, folder_obstacle
from tests.support.unprivileged import unprivileged

TRACKERS = {
    "aim": {"repo": "{place}"},
    "clearml": {"dir": "{place}", "offline": True},
    "comet": {"dir": "{place}", "mode": "offline"},
    "dvclive": {"dir": "{place}/{{run}}"},
    "file": {"path": "{place}/events.jsonl"},
    "mlflow": {"tracking_uri": "sqlite:///{place}/mlflow.db"},
    "swanlab": {"dir": "{place}", "mode": "offline"},
    "tensorboard": {"dir": "{place}"},
    "trackio": {},
    "wandb": {"dir": "{place}", "mode": "offline"},
}
_CHECK = """
import json, os
from fmstune.trackers.registry import get_tracker
os.environ["TRACKIO_DIR"] = {place!r}
found = {{}}
for name, options in json.loads({options!r}).items():
    check = get_tracker(name, **options).check(60.0)
    found[name] = [check.state, check.detail, check.remedy]
print(json.dumps(found))
"""


def checked(place: Path) -> dict[str, list[str]]:
    """The checks of all trackers that store their runs there, in a process to which permissions apply."""
    options = {
        name: {
            key: each.format(place=place) if isinstance(each, str) else each for key, each in given.items()
        }
        for name, given in TRACKERS.items()
    }
    code = _CHECK.format(place=str(place), options=json.dumps(options))
    done = unprivileged(code, place.parent.parent)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_folder_that_may_not_be_entered_is_named_with_the_remedy(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    try:
        found = checked(closed / "runs")
    finally:
        closed.chmod(0o700)
    for name, (state, detail, remedy) in found.items():
        assert (name, state) == (name, "no_permission"), detail
        assert str(closed) in detail
        assert "Errno" not in detail
        assert remedy.startswith(("choose another", "set TRACKIO_DIR")), (name, remedy)


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, (state, detail, _) in checked(tmp_path / "file" / "runs").items():
        assert (name, state, detail) == (name, "bad_option", f"{tmp_path / 'file'} is not a folder")


def test_what_can_be_written_to_has_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert folder_obstacle(tmp_path) is None
    assert folder_obstacle(Path("new/folder")) is None
    assert file_obstacle(Path("new/folder/file")) is None
    assert file_obstacle(Path("file")) is None
    assert folder_obstacle(tmp_path / "link") == ("bad_option", f"{tmp_path / 'link'} is not a folder")
    assert file_obstacle(tmp_path) == ("bad_option", f"{tmp_path} is a folder")
