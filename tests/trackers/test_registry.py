"""Any tracker can be named, none hides another, and a broken one breaks no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fmstune.trackers import registry
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import TrackerOptionError
from tests.sample_trackers import Collector
from tests.support.commands import fmstune

ROOT = Path(__file__).parents[2]
_TRACK = "    def track(self, metric, name, stage=None, *, step=None): ..."


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
        ("raise GeneratorExit('no')", "GeneratorExit: no"),
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


def test_a_package_may_print_and_start_threads_when_it_is_imported(tmp_path: Path) -> None:
    source = (
        "import atexit, threading, time\nfrom fmstune import Tracker\nprint('hello')\n"
        "atexit.register(print, 'good-bye')\nthreading.Thread(target=time.sleep, args=(3600,)).start()\n"
        f"class Mine(Tracker):\n{_TRACK}\n"
    )
    install(tmp_path, "mine", "mine_tracker:Mine", source)
    entry = listed(tmp_path)["mine/mine-pkg 1.0"]
    assert (entry["state"], entry["description"]) == (
        "ready",
        "",
    )  # not that of the base class, "no tracking"


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
def test_a_class_that_is_defined_again_replaces_its_earlier_definition() -> None:
    def cell() -> type[Tracker]:
        class Mine(Collector):
            pass

        return Mine

    registry.register_tracker("mine", cell())
    registry.register_tracker("mine", later := cell())
    assert registry.tracker_class("mine") is later


@pytest.mark.usefixtures("registered")
def test_a_registered_tracker_can_be_found_by_another_process() -> None:
    registry.register_tracker("mine", Collector)
    assert registry.reference("mine") == "tests.sample_trackers:Collector"
    built = registry.build_tracker(registry.reference("mine"), "mine", {"path": "x"})
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
    assert registry.build_tracker(where, "mine", {}).name == "mine"


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


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    async def track(self, metric, name, stage=None, *, step=None): ...", "has an async `track`"),
        (
            "    @staticmethod\n    async def track(metric, name, stage=None, *, step=None): ...",
            "async `track`",
        ),
        ("    def track(self, metric, name, stage=None, *, step=None): yield", "has a `yield` in `track`"),
        (
            f"{_TRACK}\n    async def close(self, status, error=None): ...",
            "has an async `close`, which nothing",
        ),
        (f"{_TRACK}\n    def set_params(self, params, name=None): yield params", "`yield` in `set_params`"),
        (f"{_TRACK}\n    Config = {{'path': 'x'}}", "has a `Config` that is not a dataclass"),
        (f"{_TRACK}\n    limits = {{'nan': False}}", "has limits = {'nan': False}; make it a `Limits`"),
        (f"{_TRACK}\n    durable_on = 'flush'", "has durable_on = 'flush'; make it one of 'call', 'close'"),
        (f"{_TRACK}\n    package = 5", "has package = 5; make it the name that is imported"),
        (
            f"{_TRACK}\n    def __init__(self): ...",
            "does not take `name` and `tracker_config`; let it take both",
        ),
    ],
)
def test_a_class_that_would_lose_data_or_fail_later_is_refused_with_the_remedy(
    body: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(f"from fmstune import Tracker\nclass Mine(Tracker):\n{body}\n")
    with pytest.raises(registry.BrokenTracker, match=r"^the tracker 'mine' cannot be used: ") as refused:
        registry.build_tracker(f"{tmp_path}/mine.py:Mine", "mine", {})
    assert said in str(refused.value)


@pytest.mark.usefixtures("registered")
def test_a_registered_class_is_refused_for_the_same_reasons() -> None:
    class Waits(Tracker):
        async def track(self, metric, name, stage=None, *, step=None):  # type: ignore[no-untyped-def, override]
            ...

    with pytest.raises(ValueError, match="Waits has an async `track`"):
        registry.register_tracker("mine", Waits)


@pytest.mark.usefixtures("registered")
def test_a_class_inside_a_function_is_only_for_its_own_process() -> None:
    class Local(Collector):
        pass

    registry.register_tracker("mine", Local)
    assert registry.get_tracker("mine").name == "mine"
    with pytest.raises(registry.BrokenTracker, match="define it at the top level of a module"):
        registry.reference("mine")


@pytest.mark.parametrize("name", ["hf:wandb", "tests.sample_trackers:Collector"])
@pytest.mark.usefixtures("registered")
def test_a_registered_name_cannot_be_that_of_another_kind(name: str) -> None:
    with pytest.raises(ValueError, match="has no colon"):
        registry.register_tracker(name, Collector)


def test_a_name_of_two_packages_is_refused_instead_of_choosing_one(tmp_path: Path) -> None:
    source = f"from fmstune import Tracker\nclass Mine(Tracker):\n{_TRACK}\n"
    for folder, module in ((tmp_path / "a", "one"), (tmp_path / "b", "two")):
        install(folder, "mine", f"{module}_tracker:Mine", source)
        (folder / "mine_pkg-1.0.dist-info").rename(folder / f"{module}_pkg-1.0.dist-info")
        metadata = folder / f"{module}_pkg-1.0.dist-info" / "METADATA"
        metadata.write_text(f"Metadata-Version: 2.1\nName: {module}-pkg\nVersion: 1.0\n")
    entries = listed(tmp_path / "a", tmp_path / "b")
    for module in ("one", "two"):
        entry = entries[f"mine/{module}-pkg 1.0"]
        assert (entry["state"], entry["remedy"]) == ("broken", f"name it {module}_tracker:Mine instead")
    path = os.pathsep.join([str(tmp_path / "a"), str(tmp_path / "b"), str(ROOT)])
    done = fmstune("trackers", "check", "mine", cwd=tmp_path, light=True, PYTHONPATH=path)
    assert done.returncode == 3
    assert "'mine' is that of several packages: " in done.stderr
    assert "one-pkg 1.0 (one_tracker:Mine)" in done.stderr


def test_a_package_cannot_take_a_name_of_transformers_integrations(tmp_path: Path) -> None:
    install(tmp_path, "hf:wandb", "mine_tracker:Mine", f"class Mine:\n{_TRACK}\n")
    assert listed(tmp_path)["hf:wandb/hf:wandb-pkg 1.0"]["state"] == "broken"


def test_the_options_of_a_plug_in_are_checked_by_their_types(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom decimal import Decimal\nfrom fmstune import Tracker\n"
        "@dataclass\nclass Options:\n    path: str = 'x'\n    limit: Decimal = Decimal(1)\n"
        f"class Mine(Tracker):\n    Config = Options\n{_TRACK}\n"
    )
    where = f"{tmp_path}/mine.py:Mine"
    with pytest.raises(TrackerOptionError, match=r"^trackers.mine.path = 5 is an integer; it takes a string"):
        registry.build_tracker(where, "mine", {"path": 5})
    assert registry.build_tracker(where, "mine", {"limit": 2}).config.limit == 2  # a type of the author's own


def test_an_unknown_name_and_an_unusable_class_are_refused_in_one_sentence() -> None:
    with pytest.raises(registry.UnknownTracker, match="there is no tracker 'wandbb'; there are none, aim"):
        registry.get_tracker("wandbb")
    nothing: Any = None
    with pytest.raises(registry.UnknownTracker, match="there is no tracker None; there are"):
        registry.get_tracker(nothing)
    with pytest.raises(registry.BrokenTracker, match="not a class with a method `track`"):
        registry.get_tracker("tests.sample_trackers:NotATracker")
    with pytest.raises(registry.BrokenTracker, match="ModuleNotFoundError"):
        registry.get_tracker("no.such.module:Tracker")


def test_options_are_those_that_the_tracker_declares() -> None:
    with pytest.raises(TrackerOptionError, match="aim has no option 'repository'; it has repo"):
        registry.get_tracker("aim", repository=".")
