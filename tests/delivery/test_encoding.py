"""Journal lines are parsed exactly as Python's `json` parses them, whatever they contain."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from fmstune.delivery.journal.encoding import body, body_of_finite, loads, numbered
from fmstune.delivery.journal.events import parse, parsed

NUMBERS = st.one_of(
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**400, 2**53 + 1]),
    st.floats(),
)
TEXTS = st.one_of(st.text(max_size=8), st.text(st.characters(min_codepoint=0xD7FF, max_codepoint=0xE001)))
VALUES = st.recursive(
    st.one_of(NUMBERS, TEXTS, st.booleans(), st.none(), st.sampled_from(["NaN", "Infinity"])),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXTS, below, max_size=3),
    max_leaves=4,
)
WORDS = ["0", "-0", "1e400", "-1E400", "1e5", "01", "1.", ".5", "NaN", "-Infinity", "18446744073709551616"]
WORDS += [
    '"\\ud800"',
    '"\\ud83d\\ude00"',
    '"\\u0000"',
    '"\x01"',
    "[" * 2000,
    "{}",
    "nul",
    "\ufeff1",
    "",
    " 1 ",
]
PLACES = ["seq", "time", "stage", "step", "epoch", "values", "loss", "texts"]


def outcome(read: Any, line: bytes) -> str:
    """The result of a reader for a line, with the type of each value."""
    try:
        return repr(read(line))
    except (ValueError, RecursionError) as error:
        return f"{isinstance(error, ValueError)}"


@given(values=st.dictionaries(TEXTS, VALUES, max_size=3), at=st.sampled_from(PLACES), data=st.data())
@example({"loss": 1.0}, "seq", None)
def test_a_line_is_parsed_as_json_parses_it(values: dict[str, Any], at: str, data: Any) -> None:
    record: dict[str, Any] = {"seq": 1, "time": 1.5, "kind": "metrics", "stage": "train", "step": 3}
    record |= {"epoch": 0.1, "texts": [], "values": {"loss": 0.5} | values}
    line = json.dumps(record, separators=(",", ":"), ensure_ascii=False)
    if data is not None:
        word = data.draw(st.sampled_from(WORDS) | NUMBERS.map(json.dumps))
        again = data.draw(st.booleans())  # a duplicate key, of which the last value wins
        old = json.dumps(at) + ":"
        line = line.replace(old, f"{old}{word},{old}" if again else f'{old}{word},"was":', 1)
        cut = data.draw(st.integers(0, len(line)) | st.just(len(line)))
        line = line[:cut] + data.draw(st.sampled_from(["", "", "}", " ", "{}", "\r"]))
    encoded = line.encode("utf-8", data.draw(st.sampled_from(["backslashreplace", "surrogatepass"]))
                          if data is not None else "backslashreplace") + b"\n"  # fmt: skip
    assert outcome(loads, encoded) == outcome(lambda given: json.loads(given.decode()), encoded)


@given(st.dictionaries(TEXTS, st.integers() | st.floats(allow_nan=False, allow_infinity=False), max_size=4))
def test_a_record_of_finite_numbers_is_written_like_any_other(values: dict[str, float]) -> None:
    record = {
        "time": 1.5,
        "kind": "metrics",
        "stage": "é\u2028",
        "step": None,
        "epoch": 1e-7,
        "values": values,
    }
    lines = [numbered(1, encode(record)) for encode in (body_of_finite, body)]
    assert [line.count(b"\n") for line in lines] == [1, 1]
    assert lines[0].endswith(b"\n")
    quick, whole = (repr({**json.loads(line), "crc": None}) for line in lines)
    assert quick == whole


FIELDS = {"seq": 1, "time": 1.5, "kind": "metrics", "stage": "train", "step": 3, "epoch": 0.1}
LINE = st.builds(
    lambda values, at, other: json.dumps(FIELDS | {"values": values} | ({at: other} if at else {})).encode(),
    st.dictionaries(TEXTS, st.floats(-9, 9), max_size=3),
    st.sampled_from([None, None, *FIELDS, "values", "kind", "texts"]),
    VALUES,
)


@given(st.lists(LINE | st.sampled_from([b"", b"{", b"[1]", b"\xff", b'{"kind":"metrics"}']), max_size=4))
def test_lines_parsed_in_a_batch_equal_those_parsed_one_by_one(lines: list[bytes]) -> None:
    assert repr(parsed(lines)) == repr([parse(line) for line in lines])
