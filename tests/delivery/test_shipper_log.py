"""Everything that trackers and their processes print is in a log of limited size, without secrets."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.delivery.recorder import Recorder
from fmstune.delivery.shipping.log import LOG_BYTES, BoundedLog
from fmstune.delivery.shipping.main import EXIT_DONE
from fmstune.delivery.shipping.process import Job, ShipperProcess
from fmstune.layout import TRACKING_DIR
from fmstune.secrets.redaction import REDACTED, Redactor
from tests.support.printers import SAYS, SECRETS

KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\nq83vEjRWeJCrze8S\n-----END RSA PRIVATE KEY-----"


def written(path: Path, *pieces: bytes) -> str:
    """The content of a log that was fed these pieces, the first one before it had a path."""
    log = BoundedLog(Redactor({}, SECRETS).text)
    log.feed(pieces[0])
    log.write_to(path)
    for piece in pieces[1:]:
        log.feed(piece)
    log.end()
    return path.read_bytes().decode()


@given(st.lists(st.sampled_from([*SECRETS, KEY, "x\n", "\r", " ", "é", "\n"]), min_size=1), st.data())
def test_a_secret_is_found_wherever_the_pieces_are_split(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    said = " ".join(parts).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=6)))
    text = written(path, *(said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)], strict=True)))
    for secret in (*SECRETS[:2], "two-lines-of", "a-planted-secret", "MIIEowIBAAKCAQEA", "q83vEjRWeJCrze8S"):
        assert secret not in text
    if KEY not in parts:
        assert text.count("x\n") == parts.count("x\n")
        assert text.count("é") == parts.count("é")


def test_a_log_has_a_maximum_size_and_long_lines_are_cut(tmp_path: Path) -> None:
    long = written(tmp_path / "long", b"x" * 50_000, b"x" * 50_000 + b" planted-secret", b" more\nnext\n")
    assert long.endswith("x… [a long line is cut]\nnext\n")
    assert len(long) < 5000
    full = written(tmp_path / "full", *[b"a line of thirty-two characters\n" * 1000] * 100)
    assert full.endswith("\n[the log is full]\n")
    assert len(full) < LOG_BYTES + 100
    assert written(tmp_path / "full", b"more\n", b"more\n") == full


def shipped(recorder: Recorder, directory: Path, tracker: str) -> tuple[int | None, str]:
    """Deliver a short run; returns how the shipper ended and its log."""
    recorder.track(1.0, "loss", step=1)
    recorder.close("finished")
    recorder.journal.close()
    job = Job("printer", f"tests.support.printers:{tracker}")
    process = ShipperProcess(job, check_within=None)
    try:
        process.ship(directory, follow=False, close_timeout=0, secrets=SECRETS)
        code = process.wait(300)
        return code, (directory / TRACKING_DIR / "printer.log").read_text()
    finally:
        process.kill()


@pytest.mark.parametrize(
    "tracker",
    ["Prints", "PrintsAndDies", "PrintsAndLeavesADaemon", "PrintsWithTheInterpreterHeld", "ClosesEverything"],
)
def test_output_of_any_kind_is_in_the_log_without_secrets_when_the_shipper_has_ended(
    tracker: str, recorder: Recorder, run_directory: Path
) -> None:
    code, log = shipped(recorder, run_directory, tracker)
    assert code is not None
    for said in SAYS:
        assert f"{said}: {REDACTED}\n" in log
    assert "last words" in log
    assert not any(secret in log for secret in SECRETS)


def test_a_shipper_that_prints_megabytes_delivers_everything_and_fills_no_disk(
    recorder: Recorder, run_directory: Path
) -> None:
    code, log = shipped(recorder, run_directory, "PrintsMegabytes")
    assert code == EXIT_DONE
    assert log.endswith("\n[the log is full]\n")
    assert len(log) < LOG_BYTES + 100


def test_the_reader_of_the_log_ends_with_its_shipper(recorder: Recorder, run_directory: Path) -> None:
    process = ShipperProcess(Job("printer", "tests.support.printers:Prints"), check_within=None)
    process.ship(run_directory, follow=True, close_timeout=5)
    log = run_directory / TRACKING_DIR / "printer.log"
    recorder.track(1.0, "loss", step=1)
    while not log.exists() or "split" not in log.read_text():
        time.sleep(0.01)
    (shipper,) = psutil.Process(process.pid).children()
    (reader,) = shipper.children()
    assert reader.memory_full_info().uss < 30_000_000
    shipper.kill()
    psutil.wait_procs([reader], timeout=300)
    assert not reader.is_running() or reader.status() == psutil.STATUS_ZOMBIE
    process.kill()
