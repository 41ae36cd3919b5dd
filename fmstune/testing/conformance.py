"""The examinations as a test class for pytest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from fmstune.testing.examination import Examination
from fmstune.testing.findings import Delivered, Findings, Stored


class TrackerConformance:
    """Subclass it as `Test…`, and set the tracker to examine:

        class TestMine(TrackerConformance):
            tracker = "my_module:MyTracker"
            options = {"path": "mine.db"}

    Each test delivers runs to the tracker, in processes whose current directory is a new folder. Relative
    paths in `options` are relative to it; `{folder}` stands for its path. Without `read`, the stored data is
    not compared with the tracked data. The tracker's Trainer callback, if it has one, is not examined.
    """

    tracker: ClassVar[str | type[Any]]
    options: ClassVar[Mapping[str, Any]] = {}
    modules: ClassVar[tuple[str, ...]] = ()
    """Modules to import once for all processes of the tests; for an SDK that survives a fork."""
    life_timeout: ClassVar[int] = 120
    """Seconds after which a delivering process is considered hung."""
    slowest_event: ClassVar[float] = 0.1
    """The maximum time of an event in seconds, averaged over a thousand."""
    read: Callable[[Delivered], Stored] | None = None
    """A method that returns the data that the service stores for the delivered run."""

    def prepare(self, folder: Path) -> None:
        """Prepare the folder of a run for the tracker, before the delivery."""

    def test_its_class_is_as_the_interface_has_it(self, tmp_path: Path) -> None:
        self._hold(self._examination(tmp_path).interface())

    def test_its_check_ends_in_time_and_changes_nothing(self, tmp_path: Path) -> None:
        self._hold(self._examination(tmp_path).check())

    def test_a_run_arrives_as_it_was_tracked(self, tmp_path: Path) -> None:
        self._hold(self._examination(tmp_path).whole_run())

    def test_a_run_that_tracked_nothing_does_no_harm(self, tmp_path: Path) -> None:
        self._hold(self._examination(tmp_path).empty_run())

    def test_a_resumed_run_continues(self, tmp_path: Path) -> None:
        self._hold(self._examination(tmp_path).resumed_run())

    def test_events_that_come_twice_are_there_once_where_that_is_declared(self, tmp_path: Path) -> None:
        self._hold(self._examination(tmp_path).redelivery())

    def test_a_process_that_is_killed_loses_nothing(self, tmp_path: Path) -> None:
        self._hold(self._examination(tmp_path).kills())

    def test_an_event_that_failed_arrives_later(self, tmp_path: Path) -> None:
        self._hold(self._examination(tmp_path).late_events())

    def test_rude_values_arrive_or_are_named(self, tmp_path: Path) -> None:
        self._hold(self._examination(tmp_path).unusual_values())

    def test_two_trackers_at_once_keep_their_runs_apart(self, tmp_path: Path) -> None:
        self._hold(self._examination(tmp_path).two_at_once())

    def test_a_million_events_are_delivered_in_good_time(self, tmp_path: Path) -> None:
        self._hold(self._examination(tmp_path).speed())

    def _examination(self, folder: Path) -> Examination:
        return Examination(
            self.tracker,
            self.options,
            folder,
            self.read,
            modules=self.modules,
            life_timeout=self.life_timeout,
            slowest_event=self.slowest_event,
            prepare=self.prepare,
        )

    @staticmethod
    def _hold(findings: Findings) -> None:
        print(findings)  # pytest shows it with -s, and for failed tests
        if not findings.ok:
            raise AssertionError("\n".join(findings.breaks))
