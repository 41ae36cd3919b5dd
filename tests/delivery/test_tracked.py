"""`fmstune.track` detects the kind of each value, and refuses ambiguous ones."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

import fmstune
from fmstune.delivery.journal.files import stored_file
from fmstune.delivery.recorder import Recorder, active
from fmstune.delivery.shipping.media import changed, why_not
from fmstune.delivery.tracked import Ambiguous, function_for
from fmstune.trackers.records import Limits
from tests.support.journals import events, journal_path
from tests.support.logs import Logs

PICTURE = Image.new("RGB", (2, 2))
PNG = io.BytesIO()
PICTURE.save(PNG, "PNG")
GREY = np.zeros((2, 3), np.uint8)


class Figure:
    def savefig(self, file: Any, format: str) -> None:
        file.write(PNG.getvalue())


HEADS = np.zeros((4, 16, 16))


KINDS = [
    ("metrics", (1, 0.5, True, np.float32(2), torch.tensor(0.5), torch.tensor([2]), np.zeros((1, 1)))),
    ("metrics", (b"\xff", {"a": 1}, [], ["x"])),
    ("text", ("Hello", "0.5", "NaN", "", "no/such.png")),
    ("image", (PICTURE, Figure(), PNG.getvalue(), GREY, GREY > 0, np.zeros((2, 2, 3)), torch.zeros(3, 2, 2))),
    ("image", (HEADS[:1], HEADS[:3].astype(int), np.zeros((4, 16, 16), np.uint8), np.zeros((4, 4, 4), bool))),
    ("histogram", (np.arange(3), torch.randn(4).to(torch.bfloat16), [1, 2.5], (1, 2), range(5))),
    ("histogram", ([np.float32(1), np.int8(2)], [True, False], np.array([]), [1, 10**400, -(10**400)])),
    ("histogram", ([torch.tensor(1.0), torch.tensor(2.0, requires_grad=True), torch.tensor(3)],)),
    ("histogram", (pandas.Series([1, 2]),)),
    ("table", ([{"a": 1}, {"b": 2}], ({"a": 1},), pandas.DataFrame({"a": [1, 2]}))),
]  # fmt: skip


@pytest.mark.parametrize(
    # No ids from the values: workers have to collect the same ids, and addresses and random numbers differ.
    ("kind", "value"),
    [
        pytest.param(kind, value, id=f"{kind} {type(value).__name__}")
        for kind, values in KINDS
        for value in values
    ],
)
def test_each_value_is_tracked_as_its_kind(
    kind: str, value: Any, recorder: Recorder, run_directory: Path
) -> None:
    with active(recorder):
        fmstune.track(value, "name", "stage", step=3)
    (event,) = events(run_directory)
    assert (event.kind, event.stage, event.step) == (kind, "stage", 3)
    assert event.name == (None if kind == "metrics" else "name")


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((3, 4)),
        torch.randn(8, 8),
        np.zeros((5, 6, 7)),
        np.zeros((2, 3, 4, 3)),
        np.zeros((4, 4, 2)),
        HEADS,
        np.zeros((6, 6, 4), int),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_ambiguous_array_is_refused_with_the_functions_to_call(
    value: Any, recorder: Recorder, run_directory: Path
) -> None:
    with (
        active(recorder),
        pytest.raises(ValueError, match="track_image or"),
    ):
        fmstune.track(value, "name")
    assert events(run_directory) == []


def test_a_path_is_an_image_and_its_name_as_a_string_is_refused(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    PICTURE.save(path)
    with active(recorder):
        fmstune.track(path, "picture")
        with pytest.raises(ValueError, match=r"give pathlib.Path\(…\) for the image"):
            fmstune.track(str(path), "picture")
        fmstune.track(tmp_path / "none.png", "missing")
    there, missing = events(run_directory)
    assert "file" in there.item
    assert "there is no image" in missing.item["unreadable"]


@pytest.mark.parametrize("track", [fmstune.track, fmstune.track_text])
def test_text_under_a_secret_name_is_redacted(track: Any, recorder: Recorder, run_directory: Path) -> None:
    with active(recorder):
        track("hunter2", "db_password")
    (event,) = events(run_directory)
    assert event.item["text"] == "[redacted]"


class Rude:
    """An array whose shape raises the exception of a user error."""

    ndim, dtype = 1, "float64"

    @property
    def shape(self) -> tuple[int, ...]:
        raise ValueError("no")


OTHERS = ("CMYK", "HSV", "LAB", "YCbCr")
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "I", "I;16", "F", *OTHERS)
NOWHERE = float("nan"), float("inf"), -float("inf")
CONTENTS: list[tuple[Any, str, str]] = [
    (torch.full((8,), float("nan")), "unreadable", "none of these 8 is finite"),
    (np.array(NOWHERE), "unreadable", "none of these 3 is finite"),
    (np.array([]), "unreadable", "needs at least one number"),
    ([1e308, -1e308], "altered", "are counted in the outermost bins (2)"),
    ([1.0, float("nan")], "not_finite", "leaves out numbers that are not finite (1)"),
    (np.full((2, 2, 3), 2.0), "altered", "from 0 to 2 are scaled to 8 bits"),
    (np.linspace(-1, 1, 12).reshape(2, 2, 3), "altered", "from -1 to 1 are scaled"),
    (np.full((2, 2, 3), np.nan), "altered", "not finite are black (12)"),
    (np.full((2, 2, 3), 65535, np.uint16), "altered", "from 0 to 65535 are scaled to 8 bits"),
    (np.full((2, 0, 3), 1.0), "unreadable", "is not an image"),
    *((Image.new(mode, (2, 2)), "altered", f"converted from {mode} to RGB") for mode in OTHERS),
    (Image.fromarray(np.full((2, 2), 300, np.float32)), "altered", "from 0 to 300 are scaled"),
    (Image.new("RGB", (0, 5)), "unreadable", "cannot write empty image"),
    (Path("/no/such.png"), "unreadable", "there is no image"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "key", "said"), CONTENTS, ids=[said for *_, said in CONTENTS])
def test_the_content_of_a_value_is_recorded_as_far_as_possible_and_the_rest_reported_once(
    value: Any, key: str, said: str, recorder: Recorder, run_directory: Path, caplog: Logs
) -> None:
    with active(recorder):
        fmstune.track(value, "name", "stage", step=1)
        fmstune.track(value, "name", "stage", step=2)
    first, second = events(run_directory)
    assert [first.step, second.step] == [1, 2]
    assert key in first.item
    assert ("unreadable" in first.item) != ("file" in first.item or "counts" in first.item)
    (named,) = caplog.messages
    assert said in named
    # So is the note in the delivery report.
    assert said in "".join((why_not(first, {first.kind}) or "", *changed(first, Limits())))


@pytest.mark.parametrize("mode", MODES)
def test_every_pillow_mode_is_an_image(mode: str, recorder: Recorder, run_directory: Path) -> None:
    with active(recorder):
        fmstune.track(Image.new(mode, (3, 2)), "name")
    (event,) = events(run_directory)
    with Image.open(stored_file(journal_path(run_directory), event.item)) as image:
        assert image.size == (3, 2)


ANY_ARRAY = arrays.arrays(
    st.one_of(arrays.scalar_dtypes()), st.lists(st.integers(0, 4), max_size=4).map(tuple)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=ANY_ARRAY | st.lists(st.none() | st.floats() | st.integers() | st.text() | st.booleans()))
def test_no_content_of_arrays_and_lists_raises(value: Any, recorder: Recorder) -> None:
    with active(recorder):
        with contextlib.suppress(Ambiguous):
            fmstune.track(value, "name")
        fmstune.track_histogram(value, "name")
        fmstune.track_image(value, "name")
        fmstune.track_text(value, "name")


def test_a_value_that_raises_when_it_is_inspected_is_a_metric(
    recorder: Recorder, run_directory: Path
) -> None:
    with active(recorder):
        fmstune.track(Rude(), "name")
    assert [event.kind for event in events(run_directory)] == ["metrics"]


FRAMES = [
    (pandas.DataFrame({"a": [1, 2]}, index=["x", "y"]), [{"index": "x", "a": 1}, {"index": "y", "a": 2}]),
    (pandas.DataFrame({"a": [1]}, index=[False]), [{"index": False, "a": 1}]),
    (pandas.DataFrame({"a": [1]}, index=[3]), [{"index": 3, "a": 1}]),
    (pandas.DataFrame({"a": [1]}, index=pandas.Index([0], name="row")), [{"row": 0, "a": 1}]),
    (
        pandas.DataFrame({"a": [1]}, index=pandas.MultiIndex.from_tuples([("x", 7)], names=["k", None])),
        [{"k": "x", "level_1": 7, "a": 1}],
    ),
    (pandas.DataFrame([[1, 2, 3]], columns=["a", "a", "index"]), [{"a": 1, "a (2)": 2, "index": 3}]),
    (pandas.DataFrame([[1, 2]], columns=[1, "1"]), [{"1": 1, "1 (2)": 2}]),
    (
        pandas.DataFrame([[1]], columns=["index"], index=["x"]),
        [{"index": "x", "index (2)": 1}],
    ),
    (pandas.DataFrame([[1]], columns=pandas.MultiIndex.from_tuples([("a", "b")])), [{"('a', 'b')": 1}]),
    (pandas.DataFrame({"a": [1.5, None]}), [{"a": 1.5}, {"a": "NaN"}]),
    (pandas.DataFrame({"a": []}), []),
]  # fmt: skip


@pytest.mark.parametrize(("frame", "rows"), FRAMES)
def test_a_frame_keeps_its_index_and_duplicate_columns(
    frame: Any, rows: list[dict[str, Any]], recorder: Recorder, run_directory: Path
) -> None:
    with active(recorder):
        fmstune.track(frame, "name")
    (event,) = events(run_directory)
    assert [dict(row) for row in event.rows] == rows


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.sampled_from(["a", "a (2)", "1", 1, 1.0, True, None]), min_size=1, max_size=6))
def test_no_cell_of_a_frame_is_lost_whatever_its_columns_are_called(names: list[Any]) -> None:
    frame = pandas.DataFrame(
        [list(range(len(names)))], columns=pandas.Index(names, dtype=object), index=["x"]
    )
    _, rows = function_for(frame)
    assert [list(row.values()) for row in rows] == [["x", *range(len(names))]]
