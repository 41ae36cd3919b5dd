"""What Comet is given of a run, piece by piece, whether it is sent or kept in an archive.

`Experiment.log_metric` and its kind are not used: they put messages into a queue, whose thread drops what it
cannot send after its last try, falls back to an archive elsewhere, and says so in a log alone. The messages
are the SDK's own. What is said of the SDK was seen with comet_ml 3.58.8.
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
"""Where the outermost bins of Comet's histograms end."""
"""The types of artifacts that Comet shows as models, which its registry takes."""


@dataclass(frozen=True, slots=True)
class Point:
    """A metric's value; `time` in milliseconds, one for each of several values at a step."""

    name: str
    value: int | float
    step: int | None
    epoch: float | None
    time: int

    def message(self) -> Any:
        """The SDK's message."""
        from comet_ml.messages import MetricMessage

        made = MetricMessage(timestamp=self.time)
        # NaN and the infinite ones become texts that the service knows, as JSON has none.
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
    """What Comet has of an experiment beside its params: its name, its status, …"""

    key: str
    value: Any

    def message(self) -> Any:
        """The SDK's message."""
        from comet_ml.messages import LogOtherMessage

        return LogOtherMessage(self.key, self.value)


@dataclass(frozen=True, slots=True)
class Asset:
    """A file: its `content`, or the path of one that nobody changes. `kind` is Comet's word for it."""

    id: str
    kind: str
    name: str
    content: bytes | Path
    step: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    grouping: str | None = None
    extension: str = ""

    def params(self) -> dict[str, Any]:
        """What is said of it, as the SDK has it."""
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
    """The id of a file: the same for each delivery of the event that `parts` say; without one, any."""
    if None in parts:
        return uuid.uuid4().hex
    return hashlib.md5(json.dumps(parts).encode(), usedforsecurity=False).hexdigest()


def table_asset(table: Table, key: str, of: str) -> Asset:
    """A table as a CSV file, which Comet shows as a table. Texts are in quotes, so that a missing value is
    none of them."""
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
    """A text sample, an image or a histogram. Comet gives texts names of its own, so that theirs are in the
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
    """Whether a histogram has bins beyond Comet's outermost ones."""
    return max(abs(media.low), abs(media.high)) > _MOST_BINNED


def _histogram(media: Media) -> Any:
    """In Comet's own bins, each of which is a tenth wider than the one before: there are no others."""
    from comet_ml import Histogram

    width = (media.high - media.low) / len(media.counts)
    made = Histogram()
    most = 0.99 * made.stop  # of what is beyond, it would keep nothing
    middles = [
        max(-most, min(most, media.low + width * (number + 0.5))) for number in range(len(media.counts))
    ]
    made.add(middles, counts=list(media.counts))
    return made.to_json()


def artifact_assets(artifact: Artifact, of: Sequence[Any]) -> list[Asset]:
    """The files of an artifact: those of a model together, and others in a folder of its name."""
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
    """Which events a run holds, by their numbers: as spans, of which there are few, as most come in order."""

    def __init__(self, spans: Sequence[Sequence[int]] = ()) -> None:
        self.spans = [(int(first), int(last)) for first, last in spans]

    @property
    def last(self) -> int:
        """The last one; 0 for none."""
        return self.spans[-1][1] if self.spans else 0

    def __contains__(self, seq: int) -> bool:
        for first, last in reversed(self.spans):
            if seq >= first:
                return seq <= last
        return False

    def add(self, seq: int) -> None:
        """Note one more."""
        if seq in self:
            return
        if self.spans and self.spans[-1][1] == seq - 1:
            self.spans[-1] = (self.spans[-1][0], seq)
        else:
            self.spans = sorted([*self.spans, (seq, seq)])
