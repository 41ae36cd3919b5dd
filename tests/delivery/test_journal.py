"""The journal keeps every event, whatever it contains and whatever happens to the file."""

from __future__ import annotations

import json
import math
import os
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.delivery.journal.reader import (
    RESUME,
    Header,
    JournalError,
    JournalReader,
    final_status,
    is_being_written,
    last_seq,
    lines_with,
    parse,
)
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.recorder import Recorder
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.trackers.records import MetricPoint
from fmstune.trackers.values.plain import plain
from tests.support.journals import journal_path, open_journal


def test_the_first_line_identifies_the_run_and_events_are_numbered_from_one(run_directory: Path) -> None:
    journal = open_journal(run_directory)
    journal.append("params", {"name": "params", "values": {"team": "nlp"}})
    journal.append("metrics", {"stage": "train", "step": 12, "epoch": 0.4, "values": {"loss": 1.93}})
    lines = [json.loads(line) for line in journal_path(run_directory).read_text().splitlines()]
    assert [line["seq"] for line in lines] == [0, 1, 2]
    assert lines[0]["kind"] == "header"
    assert lines[0]["version"] == 1
    assert lines[0]["run"] == "run"
    assert lines[2] == {
        "seq": 2,
        "time": lines[2]["time"],
        "kind": "metrics",
        "stage": "train",
        "step": 12,
        "epoch": 0.4,
        "values": {"loss": 1.93},
        "crc": lines[2]["crc"],
    }


def test_every_line_is_strict_json_although_numbers_may_not_be_finite(run_directory: Path) -> None:
    journal = open_journal(run_directory)
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0}
    journal.append("metrics", {"stage": "train", "values": values})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    line = journal_path(run_directory).read_text().splitlines()[-1]
    assert json.loads(line, parse_constant=refuse)["values"] == {
        "a": "NaN",
        "b": "Infinity",
        "c": "-Infinity",
        "d": 1.0,
    }
    (event,) = JournalReader(journal_path(run_directory))
    assert math.isnan(event.values["a"])
    assert event.values["b"] == math.inf
    assert event.values["c"] == -math.inf


def test_a_truncated_last_line_is_no_event_and_the_next_one_is_not_appended_to_it(
    run_directory: Path,
) -> None:
    journal = open_journal(run_directory)
    journal.append("metrics", {"stage": "train", "values": {"loss": 1.0}})
    journal.append("metrics", {"stage": "train", "values": {"loss": 2.0}})
    journal.close()
    path = journal_path(run_directory)
    os.truncate(path, path.stat().st_size - 10)
    assert [event.values["loss"] for event in JournalReader(path)] == [1.0]

    journal = open_journal(run_directory)
    assert journal.append("metrics", {"stage": "train", "values": {"loss": 3.0}}) == 2
    reader = JournalReader(path)
    assert [event.values["loss"] for event in reader] == [1.0, 3.0]
    assert reader.damaged == 1


def test_a_reopened_journal_keeps_its_header_and_its_numbers(run_directory: Path) -> None:
    first = open_journal(run_directory)
    for _ in range(5):
        first.append("metrics", {"values": {"x": 1}})
    first.close()
    second = JournalWriter(journal_path(run_directory), Header("other", "other", 0.0, "/"))
    assert second.header.id == "id-1"
    assert second.append("metrics", {"values": {"x": 1}}) == 6


def test_last_seq_is_found_from_the_end_even_after_a_very_long_line(run_directory: Path) -> None:
    journal = open_journal(run_directory)
    journal.append("params", {"name": "big", "values": {"text": "x" * 300_000}})
    assert last_seq(journal_path(run_directory)) == 1
    with journal_path(run_directory).open("ab") as file:
        file.write(b"garbage\n" * 20_000)
    assert last_seq(journal_path(run_directory)) == 1


@given(
    kinds=st.lists(st.sampled_from(["metrics", "params", "status", "resume"]), max_size=12),
    lengths=st.lists(st.sampled_from([0, 1, 7, 100]), min_size=12, max_size=12),
    torn=st.sampled_from([b"", b"{", b"damaged\n", b'{"seq":99,"time":1,"kind":"status","status":"failed"}']),
    window=st.integers(1, 200),
)
def test_the_final_status_is_the_last_one_without_a_later_resume(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], lengths: list[int], torn: bytes, window: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / JOURNAL_NAME
    lines = [
        {"seq": seq, "time": 1.0, "kind": kind, "values": {"x" * length: 1}}
        for seq, (kind, length) in enumerate(zip(kinds, lengths, strict=False), 1)
    ]
    header = {"kind": "header", "version": 1, "id": "a", "run": "r", "time": 0}
    path.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in [header, *lines]) + torn)
    expected = None
    for event in JournalReader(path):
        expected = event if event.kind == "status" else None if event.kind == "resume" else expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmstune.delivery.journal.reader._FIRST_WINDOW", window)
        patch.setattr("fmstune.delivery.journal.reader._LARGEST_WINDOW", 2 * window)
        assert final_status(path) == expected
        assert last_seq(path) == len(kinds)


def test_a_reader_sees_what_is_appended_after_it_was_opened(run_directory: Path) -> None:
    journal = open_journal(run_directory)
    reader = JournalReader(journal_path(run_directory))
    assert reader.read() == []
    journal.append("metrics", {"values": {"x": 1}})
    ((event, offset),) = reader.read()
    assert event.seq == 1
    assert offset == journal_path(run_directory).stat().st_size == reader.offset


def test_events_from_many_threads_all_arrive_once(run_directory: Path) -> None:
    journal = open_journal(run_directory)

    def write(number: int) -> None:
        for count in range(100):
            journal.append("metrics", {"values": {f"t{number}": count}})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = list(JournalReader(journal_path(run_directory)))
    assert [event.seq for event in events] == list(range(1, 801))
    assert len({tuple(event.values.items()) for event in events}) == 800


def test_a_full_disk_is_reported_once_counted_and_never_raised(run_directory: Path) -> None:
    said: list[str] = []
    header = Header("id", "run", 0.0, "/")
    journal = JournalWriter(Path("/dev/full"), header, on_problem=said.append)
    assert journal.append("metrics", {"values": {"x": 1}}) == 0
    assert journal.append("metrics", {"values": {"x": 2}}) == 0
    assert journal.unrecorded == 2
    assert len(said) == 1
    assert "No space left" in said[0]


def test_two_processes_cannot_write_one_journal(run_directory: Path) -> None:
    journal = open_journal(run_directory)
    assert is_being_written(journal_path(run_directory))
    with pytest.raises(JournalError, match="still going"):
        open_journal(run_directory)
    journal.close()
    assert not is_being_written(journal_path(run_directory))


def test_a_file_that_is_no_journal_is_reported_as_such(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"loss": 1}\n')
    with pytest.raises(JournalError, match="does not begin with a journal's header"):
        JournalReader(path)
    path.write_text('{"seq":0,"kind":"header","version":99,"run":"r","id":"i","time":0}\n')
    with pytest.raises(JournalError, match="later fmstune"):
        JournalReader(path)


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    def item(self) -> float:
        raise RuntimeError("no item")


def test_any_object_becomes_something_json_can_represent() -> None:
    import numpy as np
    import torch

    assert plain(torch.tensor(1.5)) == 1.5
    assert plain(np.float32(2.0)) == 2.0
    assert plain(np.int64(3)) == 3
    assert plain(torch.float16) == "torch.float16"
    assert plain(Hostile()) == "<Hostile>"
    assert plain({1: {Hostile(): math.nan}}) == {"1": {"<Hostile>": "NaN"}}
    assert plain(torch.ones(2)) == [1.0, 1.0]


def test_recursive_and_oversized_values_never_raise_into_the_training(recorder: Recorder) -> None:
    circle: dict[str, Any] = {"a": 1}
    circle["self"] = circle
    recorder.set_params(circle, "circle")
    recorder.track(10**5000, "huge", "eval")
    recorder.track([circle], "odd", "eval")
    events = list(JournalReader(recorder.journal.path))
    assert [event.seq for event in events] == [1, 2, 3]
    assert events[0].values["a"] == 1
    assert events[1].values["huge"] == f"<a number of {(10**5000).bit_length()} bits>"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=8))
def test_whatever_is_appended_is_read_back_in_order(batches: list[dict[str, Any]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / TRACKING_DIR).mkdir()
        journal = open_journal(directory)
        for values in batches:
            assert journal.append("params", {"name": "p", "values": values}) > 0
        journal.close()
        events = list(JournalReader(journal_path(directory)))
        assert [event.seq for event in events] == list(range(1, len(batches) + 1))
        for event, values in zip(events, batches, strict=True):
            expected = json.loads(json.dumps(plain(values)))
            assert event.values == expected


@given(st.integers(0, 2**32))
def test_damaged_bytes_never_crash_a_reader_and_are_never_silent(seed: int) -> None:
    import tempfile

    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / TRACKING_DIR).mkdir()
        journal = open_journal(directory)
        for step in range(20):
            journal.append("metrics", {"stage": "train", "step": step, "values": {"loss": step / 7}})
        journal.close()
        path = journal_path(directory)
        header, *lines = path.read_bytes().splitlines(keepends=True)
        data = bytearray(b"".join(lines))
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(header + data)
        reader = JournalReader(path)
        events = list(reader)
        whole = bytes(data).count(b"\n")
        blank = sum(1 for line in bytes(data).split(b"\n")[:-1] if not line.strip())
        assert len(events) + reader.damaged + blank == whole
        last_seq(path)


@pytest.mark.parametrize("name", [["x"], {"n": 1}, 5, 5.5, True])
def test_a_name_in_an_earlier_journal_that_is_no_string_is_read_as_one(name: Any) -> None:
    event = parse(json.dumps({"seq": 1, "time": 0, "kind": "params", "name": name, "stage": name}).encode())
    assert event is not None
    assert event.name == event.stage == str(name)


def test_a_string_that_spells_a_number_stays_a_string(recorder: Recorder, run_directory: Path) -> None:
    values = {"said": "NaN", "was": float("nan"), "way": "-Infinity", "up": np.float32("inf"), "loss": 1.0}
    recorder.track_point(MetricPoint(values, "train", 1))
    (event,) = JournalReader(journal_path(run_directory))
    assert (event.values["said"], event.values["way"]) == ("NaN", "-Infinity")
    assert math.isnan(event.values["was"])
    assert event.values["up"] == float("inf")


def test_in_an_earlier_versions_journal_such_strings_are_numbers(run_directory: Path) -> None:
    journal = open_journal(run_directory)
    journal.append("metrics", {"values": {"loss": "NaN"}})
    (event,) = JournalReader(journal_path(run_directory))
    assert math.isnan(event.values["loss"])


def test_a_reader_skips_any_number_of_damaged_lines(recorder: Recorder) -> None:
    path = recorder.journal.path
    recorder.track(1.0, "loss", "train", step=1)
    whole = path.read_bytes()
    recorder.track(2.0, "loss", "train", step=2)
    path.write_bytes(whole + b"damaged\n" * 700 + path.read_bytes()[len(whole) :])
    reader = JournalReader(path)
    assert [event.step for event in reader] == [1, 2]
    assert reader.damaged == 700


@pytest.mark.parametrize("length", [10, (1 << 20) - 20, (1 << 20) - 8, 3 << 20])
def test_a_line_is_found_by_its_content_wherever_it_is(tmp_path: Path, length: int) -> None:
    lines = [b"x" * length, b"a %s b" % RESUME, b"", RESUME * 2, b"y", b"last %s" % RESUME]
    path = tmp_path / "lines"
    path.write_bytes(b"\n".join(lines))
    assert [line.rstrip() for line in lines_with(path, RESUME)] == [line for line in lines if RESUME in line]
