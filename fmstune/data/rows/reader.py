"""The rows of a data source, in a known shape. A damaged row is reported with its file and line."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fmstune.config.methods.known import DEFAULT, METHODS
from fmstune.config.schema.data import DataConfig, DataSource, handler_name
from fmstune.config.schema.prompt_template import parse_template
from fmstune.data.cells import kind_in_words
from fmstune.data.columns import Row, has_value, with_known_names, without_nan
from fmstune.data.files.formats import Found
from fmstune.data.files.source import Origin, Split
from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.forms import Form, filled, renamed
from fmstune.data.rows.loss_columns import LOSS_COLUMNS, loss_of, nan_weight
from fmstune.data.rows.openai import as_pair
from fmstune.data.rows.padding import NOT_USED, without_padding
from fmstune.data.rows.preferences import demo_pair, recognise_preferences
from fmstune.data.rows.shapes import PREFERENCES, Recognised, Shape, recognise
from fmstune.data.rows.squad import with_one_answer
from fmstune.data.rows.unused import Unused, unused_lines
from fmstune.data.rows.vendors import require_texts, with_our_columns
from fmstune.errors import DataError
from fmstune.text import first_line

__all__ = ["PREFERENCES", "Reader", "Row", "Rows", "Shape", "load_rows"]

Handler = Callable[[dict[str, Any]], Any]
_TEXTS = ("prompt", "completion")
_BY_TEMPLATE = Recognised(
    "prompt/completion", "template", lambda row, *_: {name: row[name] for name in _TEXTS}, frozenset(_TEXTS)
)
_BY_HANDLER = "rows are left out by data.handler"
Placed = tuple[str, Row]
"""The location of a row, like `train.jsonl line 17`, and the row."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one source. `shape` is their current shape, `name` the original one; `places` are their
    locations, like `train.jsonl line 17`; `sha256` is the file's."""

    source: str
    shape: Shape
    rows: list[Row]
    places: list[str]
    sha256: str | None = None
    name: str = ""

    def place(self, index: int) -> str:
        """The location of a row."""
        return self.places[index]


def load_rows(
    source: str | DataSource,
    split: Split = "train",
    most: int | None = None,
    config: DataConfig | None = None,
) -> Rows:
    """The rows of a source, all in memory; at most `most` of them. Raises `DataError`."""
    given = DataSource(source) if isinstance(source, str) else source
    reader = Reader(given, split, config or DataConfig(), BadRows(), most=most)
    found = list(reader)
    if reader.recognised is None or not found:
        raise reader.no_rows()
    recognised = reader.recognised
    return Rows(
        given.path,
        recognised.shape,
        [row for _, row in found],
        [place for place, _ in found],
        reader.origin.sha256(),
        recognised.name,
    )


@dataclass
class Reader:
    """Read a source row by row, from the start for each iteration.

    Rows go through the user's handler, then through the template or the names of columns; the first one
    left determines the shape of all, as `method` needs it. Bad ones go to `bad`. `chat`: whether the model
    supports conversations. Raises `DataError`.
    """

    source: DataSource
    split: Split
    config: DataConfig
    bad: BadRows
    most: int | None = None
    chat: bool = True
    method: str = DEFAULT
    recognised: Recognised | None = None
    origin: Origin = field(init=False)
    unused: Unused = field(init=False)
    read: int = field(init=False, default=0)
    """How many rows of the source were read, including bad ones."""
    given: Sequence[Found] | None = None
    """Rows that were already read, in place of the whole source."""
    _handler: Handler | None = field(init=False)
    _form: Form | None = field(init=False)
    _columns: Mapping[str, str] = field(init=False)
    _by_template: bool = field(init=False)

    def __post_init__(self) -> None:
        self.origin = Origin.of(self.source, self.split, self.config.eval)
        self.unused = Unused(self.source.path)
        self._handler = _load_handler(self.config.handler)
        own = self.source.template is not None or self.source.columns
        template = self.source.template if own else self.config.template
        columns = self.source.columns if own else self.config.columns
        self._form = None
        self._columns, self._by_template = columns or {}, template is not None
        named: Collection[str] = (columns or {}).values()
        if template is not None:
            parsed = parse_template(template)
            named = parsed.columns
            self._form = filled(parsed)
            if not METHODS[self.method].compares:
                self.recognised = _BY_TEMPLATE
        elif columns:
            self._form = renamed(columns)
        elif self.source.path == "demo" and METHODS[self.method].compares:
            self._form = lambda row, _: (demo_pair(row), ())
        self.origin = replace(self.origin, columns=frozenset(named))

    def of(self, given: Sequence[Found]) -> Reader:
        """A reader of only these rows of the source, with its own counts of what is not used."""
        part = copy.copy(self)  # not `replace`, which would search the files again
        part.given, part.most, part.read = given, None, 0
        part.unused = Unused(self.source.path)
        return part

    def merge_counts(self, part: Reader) -> None:
        """Add the counts of a reader of the rows that follow those counted so far."""
        self.read += part.read
        self.unused.merge(part.unused)

    @property
    def handled(self) -> bool:
        """Whether rows go through a user's handler."""
        return self._handler is not None

    @property
    def mapped(self) -> bool:
        """Whether the user has said how columns are read, by their names or a template."""
        return bool(self._columns) or self._by_template

    def found(self) -> Iterator[Found]:
        """The rows as in the files; an error in place of a damaged one."""
        if self.given is not None:
            return iter(self.given)
        return self.origin.rows(self.config.text_rows, streaming=self.config.streaming, say=self.unused.note)

    def __iter__(self) -> Iterator[Placed]:
        count = 0
        for place, found in self.found():
            self.read += 1
            if isinstance(found, DataError):
                self.bad.reject(place, found)
                continue
            for row in self._handled(place, found):
                try:
                    read = self._read(row, place)
                except DataError as error:
                    self.bad.reject(place, error)
                    continue
                count += 1
                yield place, read
                if count == self.most:
                    return

    def _read(self, row: Row, place: str) -> Row:
        """A row in its shape; its unused columns are counted."""
        left_out: Collection[str] = ()
        if self.method == "sft" and not self._by_template:
            nan_weight(with_known_names(row), self._columns, place)
        formed = row = as_pair(without_nan(row))
        if self._form:
            formed, left_out = self._form(row, place)
        formed = with_one_answer(with_known_names(formed), place, self.unused)
        require_texts(formed, place)
        formed = with_our_columns(formed, self.method)
        if self.recognised is None:
            self.recognised = self._recognise(formed, place)
        read = self.recognised.read(formed, place, self.unused)
        if read is not formed:  # one of another method's shape is as it was, and refused later
            read, padded = without_padding(read)
            if padded:
                self.unused.add(NOT_USED, place)
        asked = loss_of(formed, place, self.recognised.shape)
        read = {**read, **asked} if asked else read
        for name in left_out:
            if has_value(row[name]):
                self.unused.column(str(name), place)
        for name, value in formed.items():
            if name not in self.recognised.columns and name not in LOSS_COLUMNS and has_value(value):
                self.unused.column(str(name), place)
        return read

    def _recognise(self, row: Row, place: str) -> Recognised:
        if not METHODS[self.method].compares:
            return recognise(row, place, chat=self.chat)
        return recognise_preferences(row, place, self.method, chat=self.chat)

    def no_rows(self) -> DataError:
        """The error for a source with no rows left."""
        remarks = [entry for entry in self.unused.entries() if entry.rows and not entry.column]
        if all(entry.what == _BY_HANDLER for entry in remarks):
            remarks = []
        if remarks:  # rows that themselves exclude everything from training
            bad = f" Others are bad, such as: {self.bad.first[0]}" if self.bad.first else ""
            said = "; ".join(unused_lines(remarks))
            return DataError(f"{self.source.path}: none of its rows is trained: {said}.{bad}")
        if self.bad.first:
            return DataError(f"{self.source.path}: all of its rows are bad, such as: {self.bad.first[0]}")
        handled = (
            f" that data.handler = {handler_name(self.config.handler)!r} leaves" if self._handler else ""
        )
        split = f" in the split {self.source.split}" if self.source.split else ""
        return DataError(f"{self.source.path} has no rows{split}{handled}.")

    def _handled(self, place: str, row: Row) -> list[Row]:
        if self._handler is None:
            return [row]
        what = f"{place}: data.handler = {handler_name(self.config.handler)!r}"
        try:
            made = self._handler(copy.deepcopy(dict(row)))
        except Exception as error:  # the user's code may raise anything
            self.bad.reject(place, DataError(f"{what} raised {type(error).__name__}: {first_line(error)}"))
            return []
        rows = [] if made is None else list(made) if isinstance(made, (list, tuple)) else [made]
        if not rows:
            self.unused.add(_BY_HANDLER, place)
        for each in rows:
            if not isinstance(each, Mapping):
                wrong = f"{what} returned {kind_in_words(each)}; it returns a row, a list of rows, or None."
                self.bad.reject(place, DataError(wrong))
                return []
        return rows


def _load_handler(where: Any) -> Handler | None:
    """The handler that a configuration names, or one that was passed from Python."""
    if where is None:
        return None
    if callable(where):
        given: Handler = where
        return given
    from fmstune.user_code import load_object

    found = load_object(where, "data.handler")
    if not callable(found):
        raise DataError(f"data.handler = {where!r} is not a function.")
    handler: Handler = found
    return handler
