"""`fmstune.track_text`, `track_image`, `track_histogram`: what is stored in the journal line and what next to
it, what is refused, and that none of them raises because of the disk or leaks a secret."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

import fmstune
from fmstune.delivery import media
from fmstune.delivery.journal.files import FileLost, stored_file
from fmstune.delivery.recorder import Recorder, active
from fmstune.secrets.redaction import know_secrets, process_redactor
from fmstune.trackers.values.media import encoded_image, histogram_of
from tests.support.journals import events, journal_path, open_journal

RED = np.zeros((2, 5, 3), np.uint8)
RED[:, :, 0] = 255


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal_path(directory).read_text().splitlines()[1:]]


def files(directory: Path) -> list[Path]:
    return sorted((journal_path(directory).parent / "files").glob("*"))


def pixels(data: bytes) -> Any:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def test_small_media_are_in_the_line_and_large_ones_once_next_to_it(
    recorder: Recorder, run_directory: Path
) -> None:
    long = "x" * 5000
    recorder.step = 7
    with active(recorder):
        fmstune.track_text("short", "answer", "eval")
        for _ in range(3):
            fmstune.track_text(long, "answer", "eval", step=8)
        fmstune.track_image(RED, "sample")
    short, *same, image = lines(run_directory)
    assert (short["kind"], short["step"], short["item"]) == ("text", 7, {"text": "short"})
    assert len({line["item"]["file"] for line in same}) == 1
    assert all(len(json.dumps(line)) < 400 for line in (*same, image))
    assert len(files(run_directory)) == 2
    path = journal_path(run_directory)
    assert stored_file(path, same[0]["item"]).read_text() == long
    assert pixels(stored_file(path, image["item"]).read_bytes()).tolist() == RED.tolist()


def test_without_a_run_nothing_happens_but_user_errors_raise(run_directory: Path) -> None:
    fmstune.track_text("a", "b")
    fmstune.track_image(RED, "b")
    fmstune.track_histogram([1], "b")
    for call in (
        lambda: fmstune.track_text(None, "a"),
        lambda: fmstune.track_text("a", None),  # type: ignore[arg-type]
        lambda: fmstune.track_image(RED, None),  # type: ignore[arg-type]
        lambda: fmstune.track_histogram([1], None),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=r"(its|their) name"):
            call()


def test_a_full_disk_is_recorded_in_the_event(
    recorder: Recorder, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(media, "store_file", full)
    with active(recorder):
        fmstune.track_image(RED, "sample", "eval", step=1)
    (event,) = events(run_directory)
    assert event.item["lost"] == "No space left on device"


def test_secrets_in_text_and_captions_are_hidden(run_directory: Path) -> None:
    know_secrets(["swordfish-7Q"])
    with active(Recorder(open_journal(run_directory), process_redactor())):
        fmstune.track_text("the password is swordfish-7Q" + " and so on" * 1000, "answer")
        fmstune.track_image(RED, "swordfish-7Q", caption="swordfish-7Q")
    assert all(
        b"swordfish-7Q" not in path.read_bytes()
        for path in [*files(run_directory), journal_path(run_directory)]
    )


@pytest.mark.parametrize(
    "image",
    [
        RED,
        RED.transpose(2, 0, 1),
        RED / 255,
        RED.astype(bool),
        torch.tensor(RED.transpose(2, 0, 1)),
        torch.tensor(RED / 255, dtype=torch.bfloat16, requires_grad=True),
        Image.fromarray(RED),
    ],
    ids=lambda image: type(image).__module__,
)
def test_images_are_accepted_in_all_common_python_types(image: Any, tmp_path: Path) -> None:
    data, suffix, changed = encoded_image(image)
    assert (suffix, changed) == (".png", "")
    assert pixels(data).tolist() == RED.tolist()
    path = tmp_path / "image.anything"
    path.write_bytes(data)
    for again in (path, str(path), data, bytearray(data)):
        assert encoded_image(again) == (data, ".png", "")


@pytest.mark.parametrize("form", ["JPEG", "GIF", "WEBP"])
def test_files_of_other_formats_are_stored_unchanged(form: str) -> None:
    file = io.BytesIO()
    Image.fromarray(RED).save(file, form)
    suffix = form.lower().replace("jpeg", "jpg")
    assert encoded_image(file.getvalue()) == (file.getvalue(), f".{suffix}", "")


class Raises:
    def save(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (b"no image", "is not an image"),
        ("nowhere.png", "there is no image nowhere.png"),
        (np.zeros((2, 2, 5)), r"of shape \[2, 2, 5\] is not an image"),
        (np.zeros((0, 2)), "is not an image"),
        (np.array([["a"]]), "integers from 0 to 255"),
        (Raises(), "cannot be read: RuntimeError: no"),
        (None, "is not an image"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        encoded_image(image)


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3, 4]))))
def test_a_png_has_the_pixels_of_its_array(array: Any) -> None:
    data, *_ = encoded_image(array)
    assert pixels(data).reshape(array.shape).tolist() == array.tolist()


def test_out_of_range_pixels_are_scaled_to_fit() -> None:
    for tracked, seen in (
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 127.5, 255.0], [0, 128, 255]),
        ([0, 256, 512], [0, 128, 255]),
        (np.array([0, 256, 65535], np.uint16), [0, 1, 255]),
        ([0.0, 0.5, np.inf], [0, 128, 0]),
        ([-1e308, 0.0, 1e308], [0, 128, 255]),
        ([0, 1, 255], [0, 1, 255]),
    ):
        data, _, changed = encoded_image(np.asarray(tracked).reshape(1, 3, 1))
        assert pixels(data).ravel().tolist() == seen
        assert bool(changed) == (list(tracked) != seen)


@given(st.lists(st.floats() | st.integers(-1000, 1000), min_size=1), st.integers(1, 512))
def test_a_histogram_counts_each_finite_number_once_and_reports_the_others(
    values: list[Any], bins: int
) -> None:
    finite = [value for value in values if np.isfinite(value)]
    try:
        item = histogram_of(values, bins)
    except ValueError:
        assert not finite
        return
    assert len(item["counts"]) == bins
    assert sum(item["counts"]) == len(finite)
    far = max(map(abs, finite)) > 4e307
    assert ("altered" in item) == far or max(map(abs, finite)) < 5e307
    assert far or item["low"] <= min(finite) <= max(finite) <= item["high"]
    assert np.isfinite(item["high"] - item["low"])
    assert item.get("not_finite", 0) == len(values) - len(finite)
    json.dumps(item, allow_nan=False)


@pytest.mark.parametrize("values", [[], [float("nan")], ["a"], None, object(), [1j]])
def test_values_without_a_histogram_are_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="histogram"):
        histogram_of(values, 8)


@pytest.mark.parametrize("bins", [0, 513, "8", True, None])
def test_the_number_of_bins_is_one_that_trackers_can_hold(bins: Any) -> None:
    with pytest.raises(ValueError, match="1 to 512 bins"):
        histogram_of([1], bins)


@pytest.mark.parametrize(
    "item", [{}, {"file": "../../journal.jsonl"}, {"file": "a" * 64 + ".png"}, {"file": 5}]
)
def test_a_line_refers_to_no_file_but_its_own(item: dict[str, Any], run_directory: Path) -> None:
    with pytest.raises(FileLost):
        stored_file(journal_path(run_directory), item)
