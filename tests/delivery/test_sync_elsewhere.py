"""A run that was tracked with a plug-in can be synced from any directory, or the error says what is
missing."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from fmstune.delivery.ledger import Ledger, ledger_path, load_ledger
from fmstune.delivery.place import record_place
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.shippers import Fleet
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.process import Job
from fmstune.delivery.sync import sync
from fmstune.layout import TRACKING_DIR
from fmstune.trackers.file_tracker import FileTracker
from fmstune.trackers.records import MetricPoint
from fmstune.trackers.registry import reference
from tests.support.journals import open_journal

PLUGIN = """
from pathlib import Path
from fmstune import Tracker
class Mine(Tracker):
    def track_point(self, point):
        if not (Path(__file__).parents[1] / "well").exists():
            raise ConnectionRefusedError("not now")
        with (Path(__file__).parents[1] / "got").open("a") as file:
            file.write(f"{point.step}\\n")
"""

OPTIONS = """
from dataclasses import dataclass
@dataclass
class Options:
    place: str = ""
"""
CONFIG = "    Config = Options\n"


@pytest.fixture
def home(recorder: Recorder, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a plug-in, and a run tracked from it whose events the plug-in did not receive."""
    home = tmp_path / "home"
    (home / "package").mkdir(parents=True)
    (home / "package" / "mine.py").write_text(PLUGIN)
    other = tmp_path / "elsewhere"
    (other / "package").mkdir(parents=True)
    (other / "package" / "mine.py").write_text("raise SystemExit('the wrong module')")
    with monkeypatch.context() as here:
        here.chdir(home)
        here.setattr(sys, "path", [*sys.path, str(home)])
        fleet = Fleet([Job("package.mine:Mine", "package.mine:Mine")], check_within=None, close_timeout=20)
        fleet.start_delivery(run_directory)
        recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
        recorder.close("finished")
        fleet.finish()
    recorder.journal.close()
    monkeypatch.chdir(other)
    monkeypatch.setattr(sys, "path", [*sys.path, str(other)])
    return home


def test_the_plug_in_is_found_where_it_was_when_the_run_was_tracked(home: Path, run_directory: Path) -> None:
    (home / "well").touch()
    (line,) = sync(run_directory, None, {}, str)
    assert (line.state, line.delivered) == ("complete", 2), line
    assert (home / "got").read_text() == "1\n"


def test_a_removed_plug_in_is_reported_as_missing_with_its_former_location(
    home: Path, run_directory: Path, tmp_path: Path
) -> None:
    (home / "package").rename(tmp_path / "moved")
    for path in (tmp_path / "elsewhere" / "package", tmp_path / "elsewhere"):
        path.rename(path.with_name("gone"))
    (line,) = sync(run_directory, None, {}, str)
    assert "ModuleNotFoundError: No module named 'package" in str(line.error)
    assert str(home) in str(line.remedy)


def test_a_module_that_the_plug_in_lacks_is_not_taken_for_the_plug_in(
    home: Path, run_directory: Path
) -> None:
    (home / "package" / "mine.py").write_text("import no_such_module\n" + PLUGIN)
    (line,) = sync(run_directory, None, {}, str)
    assert "No module named 'no_such_module'" in str(line.error)
    assert line.remedy == "install it again, or fix its import"


@pytest.mark.parametrize("how", ["moved", "renamed"])
def test_the_class_of_a_script_that_is_gone_is_reported_with_its_place(
    how: str, home: Path, run_directory: Path
) -> None:
    script = home / "package" / "mine.py"
    ledger = load_ledger(run_directory, "package.mine:Mine")
    assert ledger is not None
    dataclasses.replace(ledger, reference=f"{script}:Mine").save(run_directory)
    if how == "moved":
        script.rename(home / "moved.py")
    else:
        script.write_text(PLUGIN.replace("class Mine", "class Yours"))
    (line,) = sync(run_directory, None, {}, lambda name: f"{script}:Mine")
    assert line.remedy == f"put the class Mine back into {script}, where the run was tracked with it"


def test_a_plug_in_whose_class_an_upgrade_renamed_is_found_by_its_name(
    home: Path, run_directory: Path
) -> None:
    (home / "package" / "mine.py").write_text(PLUGIN.replace("class Mine", "class Yours"))
    (home / "well").touch()
    (line,) = sync(run_directory, None, {}, lambda name: "package.mine:Yours")
    assert (line.state, line.delivered) == ("complete", 2), line
    assert line.note == "its class was package.mine:Mine, and is now package.mine:Yours"
    (line,) = sync(run_directory, None, {}, str)
    assert (line.state, line.note) == ("complete", "not checked whether it is still there")


def test_a_removed_option_is_reported_with_the_ledger_that_has_it(home: Path, run_directory: Path) -> None:
    ledger = load_ledger(run_directory, "package.mine:Mine")
    assert ledger is not None
    dataclasses.replace(ledger, options={"address": "here"}).save(run_directory)
    (home / "package" / "mine.py").write_text(PLUGIN.replace("class Mine", OPTIONS + "class Mine") + CONFIG)
    (line,) = sync(run_directory, None, {}, str)
    assert "has no option 'address'; it has place" in str(line.error)
    assert str(ledger_path(run_directory, "package.mine:Mine")) in str(line.remedy)


def test_packages_of_the_environment_that_a_run_was_tracked_in_are_not_mixed_with_those_here(
    home: Path, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = home.rename(tmp_path / "site-packages")
    ledger = load_ledger(run_directory, "package.mine:Mine")
    assert ledger is not None
    dataclasses.replace(ledger, module_path=str(earlier), cwd=str(tmp_path)).save(run_directory)
    (earlier / "package" / "mine.py").write_text("raise SystemExit('the earlier environment')")
    here = tmp_path / "here"
    (here / "package").mkdir(parents=True)
    (here / "package" / "mine.py").write_text(PLUGIN)
    (here / "well").touch()
    monkeypatch.chdir(tmp_path)
    without = [path for path in sys.path if "elsewhere" not in path]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *without])  # as `python -m fmstune` has it
    (line,) = sync(run_directory, None, {}, str)
    assert line.remedy == "install the package of the tracker package.mine:Mine in this environment"
    monkeypatch.setattr(sys, "path", [str(tmp_path), *without, str(here)])
    (line,) = sync(run_directory, None, {}, str)
    assert (line.state, line.delivered) == ("complete", 2), line


@pytest.mark.parametrize("resumed", [False, True], ids=["moved once", "resumed in two new places"])
def test_the_file_of_a_moved_project_is_found_in_its_new_location(
    resumed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, options = tmp_path / "project", {"path": "m.jsonl"}
    (project / "runs" / "x" / TRACKING_DIR).mkdir(parents=True)
    journal = open_journal(project / "runs" / "x")
    journal.append("metrics", {"step": 1, "values": {"loss": 1.0}})
    journal.close()
    record_place(project / "runs" / "x", journal.header)
    with monkeypatch.context() as here:
        here.chdir(project)
        ledger = Ledger("file", reference("file"), options, str(project))
        Delivery(project / "runs" / "x", FileTracker("file", options), ledger).run(lambda: True)
    for folder in ["moved", "moved again"][: 1 + resumed]:
        project = project.rename(tmp_path / folder)
        if resumed:  # with another tracker, or during an outage: the ledger stays that of the first place
            record_place(project / "runs" / "x", journal.header)
    journal = open_journal(project / "runs" / "x")
    journal.append("metrics", {"step": 2, "values": {"loss": 1.0}})
    journal.append("status", {"status": "finished"})
    journal.close()
    monkeypatch.chdir(tmp_path)
    (line,) = sync(project / "runs" / "x", None, {}, reference)
    assert (line.state, line.delivered) == ("complete", 3)
    rows = map(json.loads, (project / "m.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows if row["kind"] == "metrics"] == [1, 2]
    assert not (tmp_path / "m.jsonl").exists()
