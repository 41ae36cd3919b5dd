"""`fmstune.track` takes each kind of thing for what it is, and refuses what may be two of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fmstune
from fmstune.delivery.recorder import Recorder, active
from tests.support.journals import events

PICTURE = Image.new("RGB", (2, 2))
PNG = io.BytesIO()
PICTURE.save(PNG, "PNG")
GREY = np.zeros((2, 3), np.uint8)


class Figure:
    def savefig(self, file: Any, format: str) -> None:
        file.write(PNG.getvalue())


class Frame:
    def iterrows(self) -> None: ...

    def to_dict(self, orient: str) -> list[dict[str, int]]:
        return [{"a": 1}, {"a": 2}]


KINDS = [
    ("metrics", (1, 0.5, True, np.float32(2), torch.tensor(0.5), torch.tensor([2]), np.zeros((1, 1)))),
    ("metrics", (b"\xff", {"a": 1}, [], ["x"])),
    ("text", ("Hello", "0.5", "NaN", "", "no/such.png")),
    ("image", (PICTURE, Figure(), PNG.getvalue(), GREY, GREY > 0, np.zeros((2, 2, 3)), torch.zeros(3, 2, 2))),
    ("histogram", (np.arange(3), torch.randn(4).to(torch.bfloat16), [1, 2.5], (1, 2))),
    ("table", ([{"a": 1}, {"b": 2}], ({"a": 1},), Frame())),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "value"), [(kind, value) for kind, values in KINDS for value in values], ids=str
)
def test_each_is_what_it_is(kind: str, value: Any, recorder: Recorder, run_directory: Path) -> None:
    with active(recorder):
        fmstune.track(value, "name", "stage", step=3)
    (event,) = events(run_directory)
    assert (event.kind, event.stage, event.step) == (kind, "stage", 3)
    assert event.name == (None if kind == "metrics" else "name")


@pytest.mark.parametrize(
    "value", [np.zeros((3, 4)), torch.randn(8, 8), np.zeros((5, 6, 7)), np.zeros((2, 3, 4, 3))], ids=str
)
def test_an_array_that_may_be_two_things_is_refused_with_what_to_call(
    value: Any, recorder: Recorder, run_directory: Path
) -> None:
    with (
        active(recorder),
        pytest.raises(ValueError, match="track_image or"),
    ):
        fmstune.track(value, "name")
    assert events(run_directory) == []


def test_a_path_is_an_image_and_its_name_as_a_text_is_refused(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    PICTURE.save(path)
    with active(recorder):
        fmstune.track(path, "picture")
        with pytest.raises(ValueError, match=r"give pathlib.Path\(…\) for the image"):
            fmstune.track(str(path), "picture")
        with pytest.raises(ValueError, match="there is no image"):
            fmstune.track(tmp_path / "none.png", "picture")
    assert [event.kind for event in events(run_directory)] == ["image"]


@pytest.mark.parametrize("track", [fmstune.track, fmstune.track_text])
def test_a_text_under_the_name_of_a_secret_is_redacted(
    track: Any, recorder: Recorder, run_directory: Path
) -> None:
    with active(recorder):
        track("hunter2", "db_password")
    (event,) = events(run_directory)
    assert event.item["text"] == "[redacted]"
