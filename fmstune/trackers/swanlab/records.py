"""A run's data as SwanLab's own records: the protocol buffers of its files and uploads.

`swanlab.init` and `swanlab.log` are not used: they buffer in an SDK thread, install handlers for process
exit, errors and Ctrl-C, timestamp points on arrival, and silently drop what they cannot store. SwanLab's
behaviour was observed with 0.10."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmstune.trackers.records import Media, Status, Table, utf8

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp
    from swanlab.proto.swanlab.metric.data.v1.data_pb2 import MediaItem
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

TEXT, IMAGE, CHART = 4, 2, 6
"""`ColumnType` of texts, images, and ECharts' charts and tables."""
_SHOWN = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg"}
KINDS = {"text": TEXT, "image": IMAGE, "histogram": CHART}
_STATES: Mapping[Status, int] = {"finished": 1, "failed": 2, "interrupted": 3}


def moment(seconds: float) -> Timestamp:
    """A point in time."""
    from google.protobuf.timestamp_pb2 import Timestamp

    found = Timestamp()
    found.FromMicroseconds(int(seconds * 1e6))
    return found


def column(name: str, kind: int, section_rule: int, axis: str | None) -> Record:
    """The record of a new series, in the section that SwanLab would choose."""
    from swanlab.proto.swanlab.metric.column.v1.column_pb2 import ColumnClass, ColumnRecord, SectionType
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

    parts = name.split("/")
    cut = section_rule % (len(parts) - 1) + 1 if len(parts) > 1 else 0
    found = ColumnRecord(
        column_class=ColumnClass.COLUMN_CLASS_CUSTOM,
        column_key=name,
        column_type=kind,
        section_name="/".join(parts[:cut]),
        section_type=SectionType.SECTION_TYPE_PUBLIC,
    )
    if axis is not None:
        found.x_axis = axis
    return Record(column=found)


def scalar(name: str, step: int, value: float, at: float) -> Record:
    """The record of a number."""
    from swanlab.proto.swanlab.metric.data.v1.data_pb2 import ScalarRecord, ScalarValue
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

    number = ScalarValue(number=float(value))
    return Record(scalar=ScalarRecord(key=name, step=step, type=1, timestamp=moment(at), value=number))


def media_record(name: str, step: int, kind: int, item: MediaItem, at: float) -> Record:
    """The record of a text, an image or a chart, which holds its content."""
    from swanlab.proto.swanlab.metric.data.v1.data_pb2 import MediaRecord, MediaValue
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

    value = MediaValue(items=[item])
    return Record(media=MediaRecord(key=name, step=step, type=kind, timestamp=moment(at), value=value))


def save_record(name: str, place: Path) -> Record:
    """The record of a file."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.proto.swanlab.save.v1.save_pb2 import SavePolicy, SaveRecord, SaveType

    return Record(
        save=SaveRecord(
            name=name, source_path=place.absolute().as_posix(), policy=SavePolicy.SAVE_POLICY_NOW,
            type=SaveType.SAVE_TYPE_CUSTOM,
        )
    )  # fmt: skip


def end(status: Status, error: str | None) -> Record:
    """The record of the end of a run."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.proto.swanlab.run.v1.run_pb2 import FinishRecord

    # Without an error, SwanLab shows its own message for a run that did not finish.
    said = None if status == "finished" else utf8(error or status)
    return Record(finish=FinishRecord(state=_STATES[status], error=said, finished_at=moment(time.time())))


def table_item(table: Table) -> MediaItem:
    """A table like `swanlab.echarts.Table`, which itself would leave out empty cells."""
    rows = [{column: finite(cell) for column, cell in row.items()} for row in table.filled()]
    chart = {"_swanLab": "table", "colDefs": [{"field": each} for each in table.columns], "rowData": rows}
    return _item(_as_json(chart), "json", table.step)


def media_item(shown: Media) -> MediaItem:
    """A text, an image or a histogram as a media item."""
    if shown.kind == "text":
        return _item(utf8(shown.text).encode(), "txt", shown.step)
    if shown.kind == "histogram":
        return _item(_as_json(_bars(shown)), "json", shown.step)
    assert shown.file is not None
    suffix = _SHOWN.get(shown.file.suffix.lower())
    if suffix is not None:
        return _item(shown.file.read_bytes(), suffix, shown.step, shown.text)
    import io

    from PIL import Image  # for GIF, which SwanLab refuses, and WebP

    content = io.BytesIO()
    with Image.open(shown.file) as image:
        image.save(content, "PNG")
    return _item(content.getvalue(), "png", shown.step, shown.text)


def _bars(shown: Media) -> dict[str, Any]:
    width = (shown.high - shown.low) / len(shown.counts)
    edges = [f"{shown.low + width * number:.6g}" for number in range(len(shown.counts) + 1)]
    bins = [f"{low} – {high}" for low, high in itertools.pairwise(edges)]
    return {
        "tooltip": {"trigger": "axis"},
        "xAxis": {"type": "category", "data": bins},
        "yAxis": {"type": "value"},
        "series": [{"type": "bar", "barCategoryGap": "0%", "data": list(shown.counts)}],
    }


def _as_json(chart: dict[str, Any]) -> bytes:
    return json.dumps(chart, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _item(content: bytes, suffix: str, step: int | None, caption: str = "") -> MediaItem:
    from swanlab.proto.swanlab.metric.data.v1.data_pb2 import MediaItem

    digest = hashlib.sha256(content).hexdigest()
    return MediaItem(
        filename=f"{step or 0:03d}-{digest[:8]}.{suffix}", sha256=digest, size=len(content),
        caption=utf8(caption), payload=content,
    )  # fmt: skip


def finite(value: Any) -> Any:
    """The value in strict JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return value


def as_config(params: Mapping[str, Any]) -> dict[str, Any]:
    """Params by namespace in the config format of SwanLab's file and service."""
    return {
        name: {"value": finite(values), "desc": "", "sort": number}
        for number, (name, values) in enumerate(params.items())
    }


def yaml_of(params: Mapping[str, Any]) -> str:
    """The config as in SwanLab's file."""
    import yaml

    text: str = yaml.safe_dump(as_config(params), allow_unicode=True, default_flow_style=False)
    return text


def params_of(config: Any) -> dict[str, Any]:
    """The params in a config of SwanLab's."""
    if not isinstance(config, Mapping):
        return {}
    found = [(name, each) for name, each in config.items() if isinstance(each, Mapping) and "value" in each]
    return {name: each["value"] for name, each in sorted(found, key=lambda pair: pair[1].get("sort", 0))}
