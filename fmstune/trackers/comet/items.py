"""The items that Comet receives of a run, sent or stored in an archive.

`Experiment.log_metric` and its siblings are not used: they put messages into a queue, whose thread drops
what it cannot send after its last retry, falls back to an archive elsewhere, and only logs it. The messages
are the SDK's own. The SDK's behaviour was observed with comet_ml 3.58.8.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmstune.trackers.records import Artifact, Media, Table

MODELS = ("model", "adapter")
_MOST_BINNED = 1e20
"""The edge of the outermost bins of Comet's histograms."""
"""The types of artifacts that Comet shows as models and that its registry accepts."""


@dataclass(frozen=True, slots=True)
class Point:
    """A metric's value; `time` is in milliseconds, unique among several values at a step."""

    name: str
    value: int | float
    step: int | None
    epoch: float | None
    time: int

    def message(self) -> Any:
        """The SDK's message."""
        from comet_ml.messages import MetricMessage

        made = MetricMessage(timestamp=self.time)
        # NaN and infinities become strings that the service knows, as JSON cannot represent them.
        made.set_metric(self.name, self.value, step=self.step, epoch=self.epoch)
        return made


@dataclass(frozen=True, slots=True)
class Param:
    """A param's last value."""

    name: str
    value: str
    time: int

    def message(self) -> Any:
        """The SDK's message."""
        from comet_ml.messages import ParameterMessage

        made = ParameterMessage(timestamp=self.time)
        made.set_param(self.name, self.value, source=ParameterMessage.source_manual)
        return made


@dataclass(frozen=True, slots=True)
class Other:
    """Comet's "other" values of an experiment: its name, its status, …"""

    key: str
    value: Any

    def message(self) -> Any:
        """The SDK's message."""
        from comet_ml.messages import LogOtherMessage

        return LogOtherMessage(self.key, self.value)


@dataclass(frozen=True, slots=True)
class Asset:
    """A file: its `content`, or the path of one that nothing changes. `kind` is Comet's asset type."""

    id: str
    kind: str
    name: str
    content: bytes | Path
    step: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    grouping: str | None = None
    extension: str = ""

    def params(self) -> dict[str, Any]:
        """The request parameters, as in the SDK."""
        said: dict[str, Any] = {"context": None, "step": self.step, "overwrite": False}
        if self.kind == "visualization":
            said |= {"figName": self.name, "figCounter": 0, "imageId": self.id}
        else:
            said |= {"assetId": self.id, "fileName": self.name, "type": self.kind}
        if self.grouping is not None:
            said["groupingName"] = self.grouping
        return said | ({"extension": self.extension} if self.extension else {})


Item = Point | Param | Other | Asset


def asset_id(*parts: Any) -> str:
    """The id of a file: the same for each delivery of the event in `parts`; random without one."""
    if None in parts:
        return uuid.uuid4().hex
    return hashlib.md5(json.dumps(parts).encode(), usedforsecurity=False).hexdigest()


def table_asset(table: Table, key: str, of: str) -> Asset:
    """A table as a CSV file, which Comet shows as a table. Strings are quoted, so that none equals a missing
    value."""
    columns = list(table.columns)
    lines: list[list[Any]] = [list(columns)]
    lines += [[row.get(column) for column in columns] for row in table.rows]
    text = "".join(",".join(map(_cell, line)) + "\n" for line in lines)
    name = f"{_numbered(key, table.step, table.repeats)}.csv"
    said = {"name": key, "rows": len(table.rows)}
    return Asset(of, "asset", name, text.encode(), table.step, said, extension="csv")


def _cell(value: Any) -> str:
    if isinstance(value, str):
        doubled = value.replace('"', '""')
        return f'"{doubled}"'
    return "" if value is None else str(value)


def _numbered(key: str, step: int | None, repeats: int | None) -> str:
    name = key if step is None else f"{key}.step{step}"
    return f"{name}.{repeats + 1}" if repeats else name


def media_asset(media: Media, key: str, of: str) -> Asset:
    """A text sample, an image or a histogram. Comet names texts itself, so their names are stored in the
    metadata."""
    said = {"name": key}
    if media.kind == "text":
        return Asset(of, "text-sample", "text", media.text.encode(), media.step, said)
    if media.kind == "histogram":
        content = json.dumps(_histogram(media)).encode()
        return Asset(of, "histogram3d", f"{key}.json", content, media.step or 0, said, extension="json")
    assert media.file is not None
    said |= {"caption": media.text} if media.text else {}
    suffix = media.file.suffix.lower().removeprefix(".")
    return Asset(of, "visualization", key, media.file, media.step, said, extension=suffix)


def is_beyond_bins(media: Media) -> bool:
    """Whether a histogram extends beyond Comet's outermost bins."""
    return max(abs(media.low), abs(media.high)) > _MOST_BINNED


def _histogram(media: Media) -> Any:
    """Convert to Comet's own bins, the only ones there are: each is a tenth wider than the one before."""
    from comet_ml import Histogram

    width = (media.high - media.low) / len(media.counts)
    made = Histogram()
    most = 0.99 * made.stop  # it would drop anything beyond
    middles = [
        max(-most, min(most, media.low + width * (number + 0.5))) for number in range(len(media.counts))
    ]
    made.add(middles, counts=list(media.counts))
    return made.to_json()


def artifact_assets(artifact: Artifact, of: Sequence[Any]) -> list[Asset]:
    """The files of an artifact: those of a model together, others in a folder named after it."""
    model = artifact.type in MODELS
    return [
        Asset(
            asset_id(*of, file),
            "model-element" if model else "asset",
            file if model else f"{artifact.name}/{file}",
            artifact.folder / file,
            artifact.step,
            {"artifact": artifact.name, "type": artifact.type},
            grouping=artifact.name if model else None,
            extension=Path(file).suffix.removeprefix("."),
        )
        for file in artifact.files
    ]


class Events:
    """The numbers of the events that a run holds, as spans: there are few, as most come in order."""

    def __init__(self, spans: Sequence[Sequence[int]] = ()) -> None:
        self.spans = [(int(first), int(last)) for first, last in spans]

    @property
    def last(self) -> int:
        """The last number; 0 when empty."""
        return self.spans[-1][1] if self.spans else 0

    def __contains__(self, seq: int) -> bool:
        for first, last in reversed(self.spans):
            if seq >= first:
                return seq <= last
        return False

    def add(self, seq: int) -> None:
        """Add a number."""
        if seq in self:
            return
        if self.spans and self.spans[-1][1] == seq - 1:
            self.spans[-1] = (self.spans[-1][0], seq)
        else:
            self.spans = sorted([*self.spans, (seq, seq)])
