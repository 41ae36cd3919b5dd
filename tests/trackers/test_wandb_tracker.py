"""W&B's tracker with the real SDK: offline files are read back, online goes to a stand-in."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from fmstune.trackers import wandb_files, wandb_tracker
from fmstune.trackers.records import Check, MetricPoint, RunStart, TrackerError, TrackerRun
from fmstune.trackers.wandb_tracker import WandbTracker
from tests.support.readers import WandbRun, read_wandb_offline, wandb_offline_dirs
from tests.support.wandb_cloud import WandbCloud

SECRET = "hunter2-planted-secret"
FAKE_KEY = "0123456789" * 5


@pytest.fixture(autouse=True)
def own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Each test has its own home and current folder, and no W&B settings but its own."""
    _enter_world(tmp_path, monkeypatch)
    yield tmp_path
    wandb.teardown()  # its session keeps the environment that it saw first


def _enter_world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("WANDB_") or name.lower() in ("netrc", "http_proxy", "https_proxy"):
            monkeypatch.delenv(name)
    (folder / "home").mkdir()
    (folder / "here").mkdir()
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("DATABASE_URL", f"postgres://user:{SECRET}@db/x")
    monkeypatch.chdir(folder / "here")


def _point(seq: int, **values: Any) -> MetricPoint:
    return MetricPoint(values or {"loss": 1 / seq}, "train", step=seq * 10, seq=seq)


def _start(
    run_id: str | None = None, *, redelivery: bool = False, own: str = "one", after: int = 0
) -> RunStart:
    return RunStart("tune-7", "runs/tune-7", run_id, redelivery, os.getpid(), own, after)


# -- offline ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one whole offline run, as the tests below expect it; made once."""
    world = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as monkeypatch:
        _enter_world(world, monkeypatch)
        monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
        monkeypatch.setenv("WANDB_NOTES", "from the environment")
        monkeypatch.setattr(sys, "argv", ["fmstune", "train", "--hub-token", SECRET])
        options = {"mode": "offline", "project": "demo", "group": "g1", "tags": ("a", "b")}
        tracker = WandbTracker(tracker_config=options)
        opened = tracker.open(_start())
        assert opened.id is not None
        assert opened.url is None
        tracker.set_params({"lora": {"r": 8, "targets": ["q", "v"]}}, "params")
        tracker.set_params({"team": "nlp"}, "params")
        tracker.track_point(MetricPoint({"loss": 2.5, "lr": 1e-4}, "train", 10, 0.5, 1.7e9, 5))
        tracker.track_point(MetricPoint({"loss": 2.25}, "eval", 10, seq=6))
        tracker.seq = 9
        tracker.track(0.75, "custom")
        tracker.track_point(MetricPoint({"loss": math.nan}, "train", 20, 1.0, seq=11))
        tracker.close("failed", "CUDA out of memory")
        wandb.teardown()
    return world / "here"


@pytest.fixture(scope="module")
def offline(folder: Path) -> WandbRun:
    (run,) = wandb_offline_dirs(folder)
    return read_wandb_offline(run)


def test_a_metric_is_named_by_its_stage_and_a_metric_without_stage_keeps_its_name(
    offline: WandbRun,
) -> None:
    assert offline.history[0]["train/loss"] == 2.5
    assert offline.history[0]["train/lr"] == 1e-4
    assert offline.history[1]["eval/loss"] == 2.25
    assert offline.history[2]["custom"] == 0.75


def test_rows_are_numbered_as_the_journal_is(offline: WandbRun) -> None:
    assert [row["_step"] for row in offline.history] == [5, 6, 9, 11]


def test_rows_carry_step_epoch_and_the_time_of_the_point(offline: WandbRun) -> None:
    first = offline.history[0]
    assert (first["train/global_step"], first["train/epoch"], first["_timestamp"]) == (
        10,
        0.5,
        1.7e9,
    )


def test_nan_is_kept(offline: WandbRun) -> None:
    assert math.isnan(float(offline.history[3]["train/loss"]))


def test_params_are_nested_under_their_name_and_add_up(offline: WandbRun) -> None:
    assert offline.config == {
        "params": {"lora": {"r": 8, "targets": ["q", "v"]}, "team": "nlp"},
    }


def test_options_are_used_and_what_is_not_given_is_left_to_the_environment(
    offline: WandbRun,
) -> None:
    assert offline.fields["project"] == "demo"
    assert offline.fields["run_group"] == "g1"
    assert offline.fields["tags"] == ("a", "b")
    assert offline.fields["notes"] == "from the environment"
    assert offline.fields["display_name"] == "tune-7"


def test_the_status_and_the_error_are_in_the_summary(offline: WandbRun) -> None:
    assert offline.exit_code == 1
    assert offline.summary["fmstune/status"] == "failed"
    assert offline.summary["fmstune/error"] == "CUDA out of memory"


def test_neither_environment_nor_command_line_nor_packages_are_in_the_run(
    folder: Path, offline: WandbRun
) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        content = path.read_bytes()
        for planted in (SECRET, FAKE_KEY, "--hub-token", "DATABASE_URL"):
            assert planted.encode() not in content, path
    assert not offline.kinds & {"environment", "files"}


_CUT_OFF = """
import os, signal, sys
from fmstune.trackers.base import MetricPoint, RunStart
from fmstune.trackers.wandb_tracker import WandbTracker

tracker = WandbTracker(tracker_config={"mode": "offline"})
tracker.open(RunStart("tune-7", ".", "abc123"))
for seq in range(1, 401):
    tracker.track_point(MetricPoint({"loss": 1.0}, "train", seq, seq=seq))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_delivery_that_was_killed_and_comes_again_leaves_one_folder_with_each_point_once() -> None:
    repository = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    killed = subprocess.run([sys.executable, "-c", _CUT_OFF], env=environment, check=False)
    assert killed.returncode == -9
    (cut_off,) = wandb_offline_dirs(Path())
    assert read_wandb_offline(cut_off).exit_code is None
    foreign = cut_off.with_name("offline-run-20260101_000000-abc123")  # not opened by fmstune
    shutil.copytree(cut_off, foreign)
    (foreign / "fmstune-open").unlink()

    tracker = WandbTracker(tracker_config={"mode": "offline"})
    tracker.open(_start("abc123", redelivery=True))
    for seq in range(1, 401):
        tracker.track_point(_point(seq))
    tracker.close("finished")

    kept, whole = wandb_offline_dirs(Path())
    assert kept == foreign
    assert [row["_step"] for row in read_wandb_offline(whole).history] == list(range(1, 401))
    assert read_wandb_offline(whole).exit_code == 0


def test_a_resumed_offline_run_goes_on_in_a_second_folder_of_the_same_id() -> None:
    run_id = None
    for seqs in ((1, 2), (3, 4)):
        tracker = WandbTracker(tracker_config={"mode": "offline"})
        run_id = tracker.open(_start(run_id, redelivery=run_id is not None)).id
        for seq in seqs:
            tracker.track_point(_point(seq))
        tracker.close("finished")
    first, second = map(read_wandb_offline, wandb_offline_dirs(Path()))
    assert first.id == second.id == run_id
    assert [row["_step"] for row in first.history + second.history] == [1, 2, 3, 4]


def test_the_system_metrics_are_those_of_the_training_process() -> None:
    tracker = WandbTracker(tracker_config={"mode": "offline"})
    tracker.open(RunStart("tune-7", ".", trainer_pid=1))
    assert tracker._run is not None
    assert tracker._run.settings.x_stats_pid == 1
    assert not tracker._run.settings.x_disable_stats
    tracker.close("finished")


def test_the_note_of_an_offline_run_names_its_files_for_wandb_sync() -> None:
    run_id = None
    for number in (1, 2):
        tracker = WandbTracker(tracker_config={"mode": "offline", "dir": "my runs"})
        opened = tracker.open(_start(run_id))
        run_id = opened.id
        tracker.close("finished")
        folders = shlex.split((opened.note or "").partition("`wandb sync ")[2].rstrip("`"))
        assert sorted(map(Path, folders)) == wandb_offline_dirs(Path("my runs").absolute())
        assert len(folders) == number


def test_a_run_that_the_sdk_puts_elsewhere_is_not_taken_for_a_delivery(
    monkeypatch: pytest.MonkeyPatch, own_world: Path
) -> None:
    (own_world / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own_world / "tmp"))
    monkeypatch.setattr(wandb_tracker, "require_writable", lambda _: None)  # the disk failed after it
    Path("file").touch()
    tracker = WandbTracker(tracker_config={"mode": "offline", "dir": "file/below"})
    with pytest.raises(OSError, match=r"could not write to .*file/below/wandb and went to .*/tmp/wandb/"):
        tracker.open(_start())


def test_offline_in_a_folder_that_cannot_be_written_to_is_an_error() -> None:
    Path("file").touch()
    tracker = WandbTracker(tracker_config={"mode": "offline", "dir": "file/below"})
    with pytest.raises(TrackerError, match="cannot be written to"):
        tracker.open(_start())


@pytest.mark.parametrize("variable", ["WANDB_MODE=disabled", "WANDB_DISABLED=true", "WANDB_DISABLED=1"])
def test_disabled_takes_everything_and_keeps_nothing_and_says_so(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*variable.split("=", 1))
    tracker = WandbTracker()
    found, opened = tracker.check(1), tracker.open(_start())
    assert found.ok
    assert found.detail == opened.note
    assert "nothing is sent to W&B" in found.detail
    assert ("WANDB_DISABLED" in found.detail) == ("WANDB_DISABLED" in variable)
    assert opened.url is None
    tracker.set_params({"a": 1}, "params")
    tracker.track_point(_point(1))
    tracker.close("finished")
    assert not list(Path().iterdir())


# -- online, against the stand-in ---------------------------------------------------------------


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbCloud]:
    with WandbCloud() as cloud:
        monkeypatch.setenv("WANDB_BASE_URL", cloud.url)
        monkeypatch.setenv("WANDB_API_KEY", cloud.key)
        yield cloud
        cloud.answer = "ok"
        wandb.teardown()  # while the cloud still answers


def test_an_online_run_arrives_whole_and_a_redelivery_adds_only_what_was_missing(
    cloud: WandbCloud,
) -> None:
    tracker = WandbTracker(tracker_config={"tags": ("x",), "project": "demo"})
    opened = tracker.open(_start())
    assert opened.id is not None
    assert opened.url == f"{cloud.url}/ada/demo/runs/{opened.id}"
    tracker.set_params({"r": 8}, "params")
    for seq in (2, 3, 4):
        tracker.track_point(_point(seq))
    tracker.close("interrupted")
    run = cloud.runs[opened.id]
    assert run.steps == [2, 3, 4]
    assert run.history[0]["train/loss"] == 0.5
    assert run.params == {"params": {"r": 8}}
    assert run.exit_code == 255
    assert run.fields["tags"] == ["x"]
    assert run.fields["program"] == "fmstune"

    again = WandbTracker(tracker_config={"project": "demo"})
    assert again.open(_start(opened.id, redelivery=True)).id == opened.id
    again.set_params({"r": 8, "team": "nlp"}, "params")
    for seq in (2, 3, 4, 5):
        again.track_point(_point(seq))
    again.close("finished")
    assert run.steps == [2, 3, 4, 5]
    assert run.params == {"params": {"r": 8, "team": "nlp"}}
    assert run.summary["fmstune/status"] == "finished"
    assert run.exit_code == 0


@pytest.mark.parametrize("status", [401, 403])
def test_a_run_that_the_cloud_stops_taking_is_not_reported_as_delivered(
    cloud: WandbCloud, status: int
) -> None:
    tracker = WandbTracker()
    tracker.open(_start())
    cloud.answer = status
    tracker.track_point(_point(2))
    with pytest.raises(TrackerError, match=f"did not take the whole run: .*HTTP {status}"):
        tracker.close("finished")


def test_a_run_of_the_environment_that_holds_other_points_is_an_error_and_no_point_is_lost(
    cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "shared")
    monkeypatch.setenv("WANDB_RESUME", "allow")
    tracker = WandbTracker()
    assert tracker.open(_start()).id == "shared"
    for seq in (1, 2):
        tracker.track_point(_point(seq))
    tracker.close("finished")
    with pytest.raises(TrackerError, match="holds other points; unset WANDB_RUN_ID"):
        WandbTracker().open(_start(own="another"))
    assert cloud.runs["shared"].steps == [1, 2]


def test_a_delivery_whose_ledger_is_lost_goes_on_in_the_run_of_the_environment_that_it_has_made(
    cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "shared")
    monkeypatch.setenv("WANDB_RESUME", "allow")
    for last in (2, 3):
        tracker = WandbTracker()
        tracker.open(_start())
        for seq in range(1, last + 1):
            tracker.track_point(_point(seq))
        tracker.close("finished")
    assert cloud.runs["shared"].steps == [1, 2, 3]


def _deliver(start: RunStart, *seqs: int) -> TrackerRun:
    tracker = WandbTracker()
    opened = tracker.open(start)
    for seq in seqs:
        tracker.track_point(_point(seq))
    tracker.close("finished")
    return opened


def test_a_run_resumed_elsewhere_continues_the_wandb_run_and_a_second_one_gets_its_own(
    cloud: WandbCloud,
) -> None:
    first = _deliver(_start(own="parent"), 1, 2, 3).id
    assert first is not None
    assert _deliver(_start(first, own="child", after=3), 4, 5).id == first
    assert _deliver(_start(first, own="child", after=3, redelivery=True), 4, 5, 6).id == first
    assert cloud.runs[first].steps == [1, 2, 3, 4, 5, 6]
    second = _deliver(_start(first, own="other child", after=3), 4, 5)
    assert second.id not in (None, first)
    assert f"another run continues {first}" in (second.note or "")
    assert cloud.runs[first].steps == [1, 2, 3, 4, 5, 6]
    assert cloud.runs[second.id or ""].steps == [4, 5]


def test_offline_too_a_second_run_from_one_checkpoint_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    first = _deliver(_start(own="parent"), 1, 2).id
    assert _deliver(_start(first, own="child", after=2), 3).id == first
    assert _deliver(_start(first, own="child", after=2), 4).id == first
    second = _deliver(_start(first, own="other child", after=2), 3)
    assert second.id not in (None, first)
    assert f"another run continues {first}" in (second.note or "")


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_of_two_futures_of_a_run_the_second_gets_its_own(
    mode: str, monkeypatch: pytest.MonkeyPatch, cloud: WandbCloud
) -> None:
    """Its folder was restored from a backup: the numbers 3 and 4 stand for other events now."""
    monkeypatch.setenv("WANDB_MODE", mode)

    def start(run: str | None, *sessions: str) -> RunStart:
        return dataclasses.replace(_start(run, own="one"), sessions=("one", *sessions))

    first = _deliver(start(None), 1, 2).id
    assert _deliver(start(first, "later"), 3, 4).id == first
    assert _deliver(start(first, "later", "last"), 5).id == first
    restored = _deliver(start(first, "again"), 3, 4)
    assert restored.id not in (None, first)
    assert f"another run continues {first}" in (restored.note or "")


def test_a_redelivery_removes_no_folder_that_another_run_has_open() -> None:
    place = Path("wandb/offline-run-20260101_000000-abc")
    place.mkdir(parents=True)
    (place / "fmstune-open").write_text("abc\ntwo")
    wandb_files.remove_cut_off(Path("wandb"), _start("abc", own="one"))
    assert place.exists()
    wandb_files.remove_cut_off(Path("wandb"), _start("abc", own="two"))
    assert not place.exists()


def test_a_name_longer_than_wandb_takes_is_cut_with_a_note(cloud: WandbCloud) -> None:
    tracker = WandbTracker(tracker_config={"name": "n" * 1_000_000})
    opened = tracker.open(_start())
    tracker.close("finished")
    assert cloud.runs[opened.id or ""].fields["displayName"] == "n" * 128
    assert "cut to 128 characters" in (opened.note or "")


def test_used_alone_in_process_rows_are_numbered_by_wandb() -> None:
    tracker = WandbTracker(tracker_config={"mode": "offline", "name": "mine"})
    tracker.track(0.5, "loss", "train", step=10)
    tracker.track(0.25, "loss", "train", step=20)
    tracker.close("finished")
    assert not _children()  # what wandb-core held is written when it has ended
    (run,) = map(read_wandb_offline, wandb_offline_dirs(Path()))
    rows = [(row["_step"], row["train/global_step"], row["train/loss"]) for row in run.history]
    assert rows == [(0, 10, 0.5), (1, 20, 0.25)]
    assert run.fields["display_name"] == "mine"


def test_opening_online_without_credentials_is_an_error_and_asks_nobody(
    cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(TrackerError, match=r"no API key for .* run `wandb login`"):
        WandbTracker().open(_start())
    assert not cloud.requests


def test_opening_a_run_without_a_server_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", _refused_url())
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    with pytest.raises(wandb.errors.CommError):
        WandbTracker().open(_start())


# -- check --------------------------------------------------------------------------------------


def _world() -> tuple[dict[str, bytes | None], dict[str, str], set[str]]:
    """What a check must leave as it is: files at home and here, environment, child processes."""
    paths = [*Path.home().rglob("*"), *Path.cwd().rglob("*")]
    files = {str(path): path.read_bytes() if path.is_file() else None for path in paths}
    return files, dict(os.environ), _children()


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split())


def _refused_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def _check(timeout: float = 5.0, **options: Any) -> Check:
    """What the check finds. Whatever it is, nothing has changed and no text carries a key."""
    netrc = Path.home() / ".netrc"
    if not netrc.exists():
        netrc.write_text("machine example.org login ada password x\n", encoding="utf-8")
    before = _world()
    found = WandbTracker(tracker_config=options).check(timeout)
    assert _world() == before
    for key in (WandbCloud.key, FAKE_KEY, SECRET):
        assert key not in repr(found)
    assert found.detail
    return found


class TestCheck:
    def test_a_good_key_is_ok_with_server_account_and_latency(self, cloud: WandbCloud) -> None:
        found = _check()
        assert (found.state, found.server, found.account) == ("ok", cloud.url, "ada")
        assert found.latency is not None
        assert 0 < found.latency < 5
        assert not cloud.runs
        assert len(cloud.requests) == 1

    def test_a_key_from_netrc_is_found_by_the_server_it_is_for(
        self, cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("WANDB_API_KEY")
        entry = f"machine {cloud.url.removeprefix('http://')} login user password {cloud.key}\n"
        (Path.home() / ".netrc").write_text(entry, encoding="utf-8")
        assert _check().ok
        monkeypatch.setenv("NETRC", str(Path.home() / "other"))
        assert _check().state == "no_credentials"

    def test_a_server_and_a_mode_from_the_settings_file_are_used(
        self, cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("WANDB_BASE_URL")
        settings = Path.home() / ".config" / "wandb" / "settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(f"[default]\nbase_url = {cloud.url}\n", encoding="utf-8")
        assert _check().server == cloud.url
        settings.write_text("[default]\nmode = offline\n", encoding="utf-8")
        assert _check().detail.startswith("offline")

    def test_no_key(self, cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WANDB_API_KEY")
        found = _check()
        assert found.state == "no_credentials"
        assert "wandb login" in found.remedy
        assert not cloud.requests

    def test_a_malformed_key(self, cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "tooshort")
        found = _check()
        assert found.state == "bad_option"
        assert "has 8" in found.detail
        assert "tooshort" not in repr(found)
        assert not cloud.requests

    def test_a_wrong_key(self, cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
        found = _check()
        assert found.state == "rejected_credentials"
        assert "401" in found.detail

    @pytest.mark.parametrize("answer", [403, "no_viewer"])
    def test_a_key_that_the_server_refuses(self, cloud: WandbCloud, answer: Any) -> None:
        cloud.answer = answer
        assert _check().state == "rejected_credentials"

    @pytest.mark.parametrize("answer", [500, 503, 429])
    def test_a_server_in_trouble_is_an_outage(self, cloud: WandbCloud, answer: Any) -> None:
        cloud.answer = answer
        found = _check()
        assert found.outage
        assert str(answer) in found.detail

    def test_a_black_hole_is_an_outage_and_the_check_ends_in_time(self, cloud: WandbCloud) -> None:
        cloud.answer = "black_hole"
        found = _check(timeout=1.0)
        assert found.outage
        assert "no answer in 0.5 s" in found.detail

    def test_a_refused_port_is_an_outage(self, cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_BASE_URL", _refused_url())
        found = _check()
        assert found.outage
        assert "refused" in found.detail

    def test_an_unknown_host_is_an_outage(self, cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown(*_: Any, **__: Any) -> Any:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)  # no test asks a real name server
        monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.invalid")
        found = _check()
        assert found.outage
        assert "resolved" in found.detail

    def test_a_server_that_speaks_no_tls_is_an_outage(
        self, cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_BASE_URL", cloud.url.replace("http:", "https:"))
        found = _check()
        assert found.outage
        assert "TLS" in found.detail

    def test_another_web_server_is_a_wrong_option(self, cloud: WandbCloud) -> None:
        cloud.answer = 404
        assert _check().state == "bad_option"

    def test_the_users_own_entity_and_a_teams_entity_may_be_written_to(self, cloud: WandbCloud) -> None:
        assert _check(entity="ada").ok
        assert _check(entity="nlp").ok

    def test_a_foreign_entity_may_not_be_written_to(self, cloud: WandbCloud) -> None:
        found = _check(entity="strangers")
        assert found.state == "no_permission"
        assert "nlp" in found.remedy

    def test_a_project_that_may_only_be_read(self, cloud: WandbCloud) -> None:
        cloud.read_only = frozenset({"nlp/shared"})
        assert _check(entity="nlp", project="shared").state == "no_permission"
        assert _check(entity="nlp", project="own").ok

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"mode": "onlin"}, "mode"),
            ({"project": "a/b"}, "project"),
            ({"entity": "a b"}, "entity"),
            ({"tags": ("x" * 65,)}, "tags"),
        ],
    )
    def test_a_wrong_option_is_named(self, options: dict[str, Any], said: str) -> None:
        found = _check(**options)
        assert found.state == "bad_option"
        assert said in found.detail.lower()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("WANDB_BASE_URL", f"ftp://ada:{SECRET}@x"),
            ("WANDB_BASE_URL", f"https://ada:{SECRET}@wandb.ai"),
            ("WANDB_MODE", "onlin"),
            ("WANDB_TAGS", "a," + "x" * 65),
            ("WANDB_INIT_TIMEOUT", "soon"),
        ],
    )
    def test_a_wrong_environment_variable_is_a_wrong_option(
        self, name: str, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, value)
        found = _check()
        assert found.state == "bad_option"
        assert found.detail.startswith(f"{name} = '{value[:3]}")
        assert found.remedy == f"correct {name}"
        assert SECRET not in repr(found)

    def test_an_identity_token_is_said_to_be_unverified(self, monkeypatch: pytest.MonkeyPatch) -> None:
        token = Path.home() / "token"
        monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", str(token))
        assert _check().state == "no_credentials"
        token.write_text("a.b.c", encoding="utf-8")
        found = _check()
        assert found.ok
        assert "identity token" in found.detail

    def test_offline_needs_no_key_but_a_folder_to_write_to(self, own_world: Path) -> None:
        found = _check(mode="offline")
        assert found.ok
        assert str(own_world / "here" / "wandb") in found.detail
        assert "wandb sync" in found.detail
        assert _check(mode="offline", dir="not/yet/there").ok
        assert _check(mode="offline", dir=str(Path.home() / ".netrc")).state == "no_permission"

    def test_disabled_is_said(self) -> None:
        found = _check(mode="disabled")
        assert found.ok
        assert "disabled" in found.detail


def test_importing_the_tracker_does_not_import_wandb() -> None:
    code = "import sys, fmstune.trackers.wandb_tracker; sys.exit('wandb' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
