"""Any tracker can be named, none hides another, and a broken one breaks no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fmstune.trackers import registry
from fmstune.trackers.base import Tracker
from fmstune.trackers.compat import OldShapeTracker, build_tracker
from fmstune.trackers.records import TrackerOptionError
from tests.sample_trackers import Collector
from tests.support.commands import fmstune

ROOT = Path(__file__).parents[2]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove a test's registrations at its end."""
    monkeypatch.setattr(registry, "_registered", {})


def install(folder: Path, name: str, target: str, source: str = "") -> None:
    """Install a distribution with one entry point the way pip lays it out."""
    metadata = folder / f"{name}_pkg-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-pkg\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[fmstune.trackers]\n{name} = {target}\n")
    if source:
        (folder / f"{target.partition(':')[0]}.py").write_text(source)


def listed(*folders: Path) -> dict[str, dict[str, object]]:
    path = os.pathsep.join([*map(str, folders), str(ROOT)])
    done = fmstune("trackers", "list", "--json", cwd=ROOT, light=True, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    return {f"{entry['name']}/{entry['origin']}": entry for entry in json.loads(done.stdout)}


def test_built_in_trackers_are_listed_without_an_sdk() -> None:
    entries = listed()
    assert {entry["name"] for entry in entries.values()} >= {"none", "aim", "wandb", "file"}
    assert entries["aim/fmstune"]["state"] == "ready"


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_the_listing_of_a_tracker_matches_its_class(name: str) -> None:
    known, found = registry.BUILT_IN[name], registry.tracker_class(name)
    assert (known.description, known.package, known.distributions) == (
        found.description,
        found.package,
        found.distributions,
    )
    assert found.registered_name == name
    assert found.get_hf_callback is Tracker.get_hf_callback


def test_an_installed_package_adds_a_tracker_by_its_entry_point(tmp_path: Path) -> None:
    source = (
        "from fmstune import Tracker\nclass Mine(Tracker):\n    description = 'mine'\n"
        "    def track(self, metric, name, stage=None, *, step=None): ...\n"
    )
    install(tmp_path, "mine", "mine_tracker:Mine", source)
    entry = listed(tmp_path)["mine/mine-pkg 1.0"]
    assert (entry["state"], entry["description"], entry["in_process"]) == ("ready", "mine", False)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("import os; os._exit(3)", "ended the process"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended the process"),
        ("Other = 1", "AttributeError"),
        ("Mine = 1", "not a class with a method `track`"),
        ("def x(:", "SyntaxError"),
    ],
)
def test_a_broken_package_is_listed_as_broken_and_breaks_no_other(
    source: str, reason: str, tmp_path: Path
) -> None:
    install(tmp_path, "mine", "mine_tracker:Mine", source)
    entries = listed(tmp_path)
    assert entries["mine/mine-pkg 1.0"]["state"] == "broken"
    assert reason in str(entries["mine/mine-pkg 1.0"]["description"])
    assert entries["aim/fmstune"]["state"] == "ready"


def test_a_package_cannot_take_the_name_of_another_tracker(tmp_path: Path) -> None:
    install(tmp_path, "aim", "mine_tracker:Mine", "from fmstune import Tracker as Mine\n")
    entries = listed(tmp_path)
    assert entries["aim/fmstune"]["state"] == "ready"
    assert entries["aim/aim-pkg 1.0"]["state"] == "broken"
    assert entries["aim/aim-pkg 1.0"]["remedy"] == "name it mine_tracker:Mine instead"


def test_a_vendors_own_callback_is_marked_as_in_process(tmp_path: Path) -> None:
    head = "class Mine:\n    def __init__(self, name=None, tracker_config=None): ...\n"
    head += "    def track(self, m, n, s): ...\n    def get_hf_callback(self): "
    install(tmp_path, "mine", "mine_tracker:Mine", f"{head}return self\n    def on_log(self): ...\n")
    install(tmp_path, "none", "other_tracker:Mine", f"{head}return None\n")
    install(tmp_path, "other", "other_tracker:Mine")
    entries = listed(tmp_path)
    assert entries["mine/mine-pkg 1.0"]["in_process"] is True
    assert entries["other/other-pkg 1.0"]["in_process"] is False


@pytest.mark.usefixtures("registered")
def test_registering_a_tracker_keeps_all_others() -> None:
    before = registry.known_names()
    registry.register_tracker("mine", Collector)
    assert set(registry.known_names()) == {*before, "mine"}
    assert registry.tracker_class("mine") is Collector
    assert registry.tracker_class("file").registered_name == "file"
    registry.register_tracker("mine", Collector)
    for taken in ("aim", "mine"):
        with pytest.raises(ValueError, match="is taken"):
            registry.register_tracker(taken, Tracker)


@pytest.mark.usefixtures("registered")
def test_a_registered_tracker_can_be_found_by_another_process() -> None:
    registry.register_tracker("mine", Collector)
    assert registry.reference("mine") == "tests.sample_trackers:Collector"
    built = build_tracker(registry.reference("mine"), "mine", {"path": "x"})
    assert isinstance(built, Collector)
    assert built.name == "mine"


def test_a_tracker_defined_in_a_script_is_found_through_its_file(tmp_path: Path) -> None:
    script = tmp_path / "my_script.py"
    script.write_text(
        "from fmstune import Tracker, register_tracker\n"
        "from fmstune.trackers.registry import reference\n"
        "class Mine(Tracker):\n    def track(self, metric, name, stage=None, *, step=None): ...\n"
        "if __name__ == '__main__':\n    register_tracker('mine', Mine)\n    print(reference('mine'))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, cwd=ROOT)
    where = done.stdout.strip()
    assert where == f"{script}:Mine"
    assert build_tracker(where, "mine", {}).name == "mine"


_AS_IN_A_NOTEBOOK = """
import fmstune
from fmstune.trackers.registry import BrokenTracker, reference
class Mine(fmstune.Tracker):
    def track(self, metric, name, stage=None, *, step=None): ...
fmstune.register_tracker("mine", Mine)
for name in ("mine", "__main__:Mine"):
    try:
        print(reference(name))
    except BrokenTracker as error:
        print(error)
"""


def test_a_tracker_without_a_file_is_refused_and_one_of_a_script_has_two_names(tmp_path: Path) -> None:
    def output(*arguments: str, **how: str) -> list[str]:
        run = [sys.executable, *arguments]
        done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=tmp_path, **how)
        return done.stdout.splitlines()

    script = tmp_path / "script.py"
    script.write_text(_AS_IN_A_NOTEBOOK)
    assert output(str(script)) == [f"{script}:Mine"] * 2
    for lines in (output("-c", _AS_IN_A_NOTEBOOK), output(input=_AS_IN_A_NOTEBOOK)):
        assert len(lines) == 2
        assert all("Move it into a module, and name it as module:Class" in line for line in lines)


def test_a_dotted_path_is_a_valid_name() -> None:
    tracker = registry.get_tracker("tests.sample_trackers:Collector", path="x")
    assert tracker.name == "tests.sample_trackers:Collector"


def test_a_tracker_that_would_drop_all_metrics_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from fmstune import Tracker\n"
        "class Typo(Tracker):\n    def trak(self, metric, name, stage=None, *, step=None): ...\n"
        "class Ignores(Tracker):\n    def track(self, metric, name, stage=None, *, step=None): ...\n"
    )
    with pytest.raises(registry.BrokenTracker, match="would drop all metrics; define one of `track`, "):
        registry.load_reference(f"{tmp_path}/mine.py:Typo", "mine")
    assert registry.load_reference(f"{tmp_path}/mine.py:Ignores", "mine").__name__ == "Ignores"


def test_an_unknown_name_and_an_unusable_class_are_refused_in_one_sentence() -> None:
    with pytest.raises(registry.UnknownTracker, match="there is no tracker 'wandbb'; there are none, aim"):
        registry.get_tracker("wandbb")
    with pytest.raises(registry.BrokenTracker, match="not a class with a method `track`"):
        registry.get_tracker("tests.sample_trackers:NotATracker")
    with pytest.raises(registry.BrokenTracker, match="ModuleNotFoundError"):
        registry.get_tracker("no.such.module:Tracker")


def test_options_are_those_that_the_tracker_declares() -> None:
    with pytest.raises(TrackerOptionError, match="aim has no option 'repository'; it has repo"):
        registry.get_tracker("aim", repository=".")


def test_a_tracker_with_the_old_interface_is_called_with_three_arguments(tmp_path: Path) -> None:
    tracker = build_tracker("tests.sample_trackers:OldShape", "old", {"path": str(tmp_path / "o")})
    assert isinstance(tracker, OldShapeTracker)
    tracker.track(1.0, "loss", "train", step=3)
    assert (tmp_path / "o").read_text() == '[1.0, "loss", "train"]\n'


def test_a_bare_tracker_does_nothing_but_refuses_invalid_metrics() -> None:
    tracker = Tracker()
    assert tracker.name == "none"
    tracker.track(1.0, "loss", "train")
    tracker.set_params({"a": 1})
    tracker.set_params(None)
    for metric, name in ((None, "loss"), (1.0, None)):
        with pytest.raises(ValueError, match="needs a metric and its name"):
            tracker.track(metric, name)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a mapping"):
        tracker.set_params([1])  # type: ignore[arg-type]


def test_trackers_share_no_state() -> None:
    first, second = registry.get_tracker("file", path="a"), registry.get_tracker("file", path="b")
    first.seq = 5
    assert second.seq is None
    assert first.config.path != second.config.path
