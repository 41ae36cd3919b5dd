"""The base of the built-in trackers that take the metrics of a step together."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fmstune.secrets.redaction import hide
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import MetricPoint, merged, utf8
from fmstune.trackers.standalone import MOST_APPEARED, adapted
from fmstune.trackers.values.normalise import Normaliser
from fmstune.trackers.values.plain import number, plain, text_of

logger = logging.getLogger("fmstune")


class WholePointTracker(Tracker):
    """A tracker that takes the metrics of a step together, by `track_point`.

    What it gets in a run has been adapted to its `limits`; standalone, in a script, it adapts it itself."""

    def __init__(self, name: str | None = None, tracker_config: Any = None) -> None:
        super().__init__(name, tracker_config)
        self._adapt = Normaliser(self.limits)
        self._reported: set[str] = set()
        self._appeared: set[tuple[str | None, str]] = set()

    def open_alone(self) -> None:
        self._appeared.clear()  # it is another run than before `close`
        super().open_alone()

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        super().track(metric, name, stage)
        if self.seq is None:  # anything that a script may pass
            name, stage = text_of(name), None if stage is None else text_of(stage)
            step = self._adapt.step(plain(self.step if step is None else step))
        self.track_point(MetricPoint({name: metric}, stage, step, time=self.event_time, seq=self.seq))
        if self.seq is None and (stage, name) not in self._appeared and len(self._appeared) < MOST_APPEARED:
            self._appeared.add((stage, name))
            self.appear()

    def _fitted_or_own(self, point: MetricPoint) -> tuple[Mapping[str, Any], str | None]:
        """As `_fitted`, for an SDK with types of its own: standalone, it gets what is not a number
        unchanged."""
        if self.seq is not None:
            return point.values, point.stage
        numbers = {name: number(value) for name, value in point.values.items()}
        given = {name: value for name, value in numbers.items() if isinstance(value, (int, float))}
        own = {utf8(name) or "_": value for name, value in point.values.items() if name not in given}
        values, stage = self._fitted(point._replace(values=given))
        return {**values, **own}, stage

    def _fitted(self, point: MetricPoint) -> tuple[Mapping[str, Any], str | None]:
        """The values and the stage of a point as the service takes them."""
        if self.seq is not None:
            return point.values, point.stage
        stage = self._adapt.stage(point.stage)
        numbers = {name: number(value) for name, value in point.values.items()}
        values = self._adapt.metrics(numbers, stage)
        self._report_changes()
        return values, stage

    def _fitted_params(
        self, params: Mapping[str, Any], name: str | None, held: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """The namespace of params and what the service takes of them; standalone, merged with what it
        `held` in its namespaces."""
        namespace = name or "params"
        if self.seq is not None:
            return namespace, dict(params)
        namespace = self._adapt.namespace(namespace) or "params"
        given = self._adapt.params(plain(dict(params)), namespace)
        self._report_changes()
        return namespace, given if held is None else merged(held.get(namespace, {}), given)

    def _report_changes(self) -> None:
        """Log what the service cannot take as it is, once for each name: there is no report of a delivery."""
        for change in map(adapted, self._adapt.changes):
            if change not in self._reported:
                self._reported.add(change)
                logger.warning("%s: %s", self.name, hide(change))
