"""Examine a tracker: each method delivers a run to it, in other processes, and returns findings."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.shipping.crashes import can_progress
from fmstune.testing import runs
from fmstune.testing.compare import differences, shortened
from fmstune.testing.compare_items import missing_items, params_of_tables, uncompared
from fmstune.testing.findings import Delivered, Findings, Read, Stored, found
from fmstune.testing.fork_server import ChildError, Failure, ForkServer, Kill, RefusedError, leaks
from fmstune.trackers.registry import reference as reference_of
from fmstune.user_code import require_own_process

_INSIDE = "fmstune.testing.inside"
_MOST_LIVES = 60
_MANY = 1000


class Examination:
    """Examines one tracker; each examination uses its own folder below `folder`."""

    def __init__(
        self,
        tracker: str | type[Any],
        options: Mapping[str, Any] | None,
        folder: Path,
        read: Read | None = None,
        *,
        modules: Sequence[str] = (),
        life_timeout: int = 120,
        slowest_event: float = 0.1,
        prepare: Callable[[Path], object] | None = None,
    ) -> None:
        """`tracker` is an importable class, `module:Class`, or the name of a registered tracker; in
        `options`, `{folder}` stands for the folder of the delivered run. `modules` are imported once for all
        processes, which saves time with an SDK that survives a fork. A delivering process may take
        `life_timeout` seconds, an event `slowest_event` seconds on average. `prepare` prepares the folder of
        an examination."""
        self.reference = _reference(tracker)
        self.options = dict(options or {})
        self.folder = folder
        self._read = read
        module = self.reference.rpartition(":")[0]
        # A script is not a module that can be imported by its name; each child loads it.
        self._server = _fork_server(("" if module.endswith(".py") else module, *modules))
        self._life_timeout = life_timeout
        self._slowest_event = slowest_event
        self._prepare = prepare
        self._guarantees: dict[str, Any] | None = None
        self._uncompared = "Nothing was compared: there is no `read`."

    # -- examinations -------------------------------------------------------------------------

    def interface(self) -> Findings:
        """The class itself, and its behaviour before a run is opened."""
        breaks = self._inside("interface", self._new("interface"))
        return found(breaks, "Its class implements the interface.")

    def check(self) -> Findings:
        """`check`: it returns in time, and changes nothing."""
        breaks = self._inside("check", self._new("check"))
        return found(breaks, "Its check returns in time and changes nothing.")

    def whole_run(self) -> Findings:
        """A finished run with data of each kind; no secret of its process is stored."""
        run = self._delivered("whole", runs.whole)
        breaks = self._compared(run, status="finished") + leaks(run)
        how = "arrives as tracked," if self._read else "is delivered"
        keeps = f"A run {how} without anything from its process's environment. {self._uncompared}"
        return found(breaks, keeps.strip())

    def empty_run(self) -> Findings:
        """A run that tracked nothing, with an end and without one."""
        run = self._delivered("empty", lambda recorder: recorder.close("interrupted"))
        none = self._delivered("nothing", lambda recorder: None)
        return found(self._incomplete(run) + self._incomplete(none), "A run that tracked nothing works.")

    def resumed_run(self) -> Findings:
        """A run that is interrupted, and resumed from an earlier step."""
        run = self._delivered("resumed", runs.first_part)
        first = self._ledger(run)
        runs.write(run, runs.second_part)
        self._deliver(run)
        breaks = self._compared(run, status="finished")
        if first.run_id is not None and self._ledger(run).run_id != first.run_id:
            breaks.append("A resumed run is opened as a new one; open the run `start.tracker_run_id`.")
        again = {"replaced": "replaced", "kept": "kept with the new ones"}[self._declared["repeated_steps"]]
        return found(breaks, f"A resumed run continues; values of steps that it logs again are {again}.")

    def redelivery(self) -> Findings:
        """A run is delivered again, as if its ledger was lost, if the tracker is declared idempotent."""
        if not self._declared["idempotent"]:
            return Findings(keeps=("It is not declared idempotent: repeated events may be duplicated.",))
        run = self._delivered("redelivery", runs.whole)
        there = self._ledger(run)
        start = dataclasses.replace(Ledger("t"), run_id=there.run_id, url=there.url)
        start.save(run)
        self._deliver(run)
        return found(self._compared(run), "Events that are delivered twice change nothing.")

    def kills(self) -> Findings:
        """The process is killed before and after calls, and during the end of the run."""
        run = self._new("kills") / "run"
        runs.write(run, runs.plain)
        for kill in (Kill(1, False), Kill(2, True), Kill(4, True), Kill(3, False)):
            self._deliver_once(run, kill)
        self._deliver(run)
        at_end = self._new("killed at its end") / "run"
        runs.write(at_end, runs.plain)
        last = len(runs.events_of(at_end))
        for kill in (Kill(last, False), Kill(1, True)):
            self._deliver_once(at_end, kill)
        self._deliver(at_end)
        once = self._declared["idempotent"] or self._declared["durable_on"] == "close"
        repeats = 0 if once else 3
        keeps = "A killed process loses nothing" + (", and duplicates nothing." if once else ".")
        breaks = [*self._compared(run, repeats=repeats), *self._compared(at_end, repeats=repeats)]
        if any("is missing" in each for each in breaks):
            breaks.append(
                "If the SDK buffers, let `flush` wait until everything is stored; if it stores a run only at "
                'its end, set durable_on = "close".'
            )
        return found(list(dict.fromkeys(breaks)), keeps)

    def late_events(self) -> Findings:
        """An event fails, and arrives after later ones, or they wait for it if the tracker requires that."""
        run = self._new("late") / "run"
        runs.write(run, runs.plain)
        self._deliver_once(run, Failure(4))
        self._deliver(run)
        keeps = "arrives after later ones" if self._declared["takes_late"] else "delays later ones"
        breaks = self._compared(run)
        if breaks and self._declared["takes_late"]:
            breaks.append("If the service does not accept events out of order, set takes_late = False.")
        return found(breaks, f"A failed event {keeps}; nothing is lost.")

    def unusual_values(self) -> Findings:
        """Values that some services cannot store, each in its own event."""
        run = self._new("edge-cases") / "run"
        runs.write(run, runs.edge_cases)
        self._deliver(run)
        suspicion = self._ledger(run).suspicion
        breaks = []
        for number, case in enumerate(runs.EDGE_CASES, 1):
            if number in suspicion.refused or suspicion.mark(number) is not None:
                cause = suspicion.cause(number)
                remedy = f" {case.remedy}" if case.declare else ""
                breaks.append(f"It fails at {case.what}: {cause}.{remedy}")
        if not breaks:
            breaks = self._compared(run, status="failed")
        return found(
            breaks, f"{len(runs.EDGE_CASES)} edge-case values arrive, or the report lists what was adapted."
        )

    def two_at_once(self) -> Findings:
        """Two trackers in one process, with a run each."""
        folder = self._new("two")
        both = [folder / name for name in ("one", "other")]
        for each in both:
            each.mkdir(exist_ok=True)
        begun = [(str(each), self._options(each)) for each in both]
        breaks = self._inside("two_at_once", folder, begun)
        for number, each in enumerate(both, 1):
            if self._read is None or breaks:
                continue
            wanted = [("train/loss", step, 10.0 * number + step) for step in range(1, 5)]
            got = sorted((key, step, value) for key, step, value in self._stored(each, None, None).points)
            if [point for point in got if point[0] == "train/loss"] != wanted:
                breaks.append(
                    f"Of two trackers in one process, one has {got}; keep all state in the instance."
                )
        return found(breaks, "Two trackers in one process do not mix up their runs.")

    def speed(self) -> Findings:
        """Deliver a thousand events, and estimate the time of a million."""
        run = self._new("speed") / "run"
        runs.write(run, lambda recorder: runs.many(recorder, _MANY))
        began = time.monotonic()
        self._deliver(run)
        each = (time.monotonic() - began) / _MANY
        breaks = self._incomplete(run)
        if each > self._slowest_event:
            breaks.append(
                f"An event takes {1000 * each:.0f} ms; send them in batches, and wait for the service in "
                f"`flush`."
            )
        return found(breaks, f"A million events would take {each * 1e6 / 60:.1f} minutes.")

    def all(self) -> Findings:
        """Run all examinations, in the order in which an author would fix problems; only the first one for a
        tracker that cannot be used."""
        try:
            _ = self._declared
        except ChildError:
            if not (found := self.interface()).ok:
                return found
            raise
        every = (
            self.interface, self.check, self.whole_run, self.empty_run, self.resumed_run, self.redelivery,
            self.kills, self.late_events, self.unusual_values, self.two_at_once, self.speed,
        )  # fmt: skip
        return sum((each() for each in every), Findings())

    # -- deliveries ---------------------------------------------------------------------------

    @property
    def _declared(self) -> dict[str, Any]:
        if self._guarantees is None:
            where = (self.folder, self.reference, self._options(self.folder))
            reader = f"{_INSIDE}:declared"
            self._guarantees = self._server.read(reader, *where, seconds=self._life_timeout)
        return self._guarantees

    def _options(self, folder: Path) -> dict[str, Any]:
        return {
            key: value.replace("{folder}", str(folder)) if isinstance(value, str) else value
            for key, value in self.options.items()
        }

    def _new(self, name: str) -> Path:
        folder = self.folder / name.replace(" ", "-")
        folder.mkdir(parents=True)
        if self._prepare is not None:
            self._prepare(folder)
        return folder

    def _inside(self, name: str, folder: Path, *arguments: Any) -> list[str]:
        try:
            where = (f"{_INSIDE}:{name}", folder, self.reference, self._options(folder))
            said: list[str] = self._server.read(*where, *arguments, seconds=self._life_timeout)
        except RefusedError as error:
            return [str(error)]
        except ChildError as error:
            return [f"{name.replace('_', ' ')}: {error}; its traceback is above."]
        return said

    def _delivered(self, name: str, script: runs.Script) -> Path:
        run = self._new(name) / "run"
        runs.write(run, script)
        self._deliver(run)
        return run

    def _deliver_once(self, run: Path, fault: Kill | Failure | None, *, forgive: bool = True) -> bool:
        where = (run, self.reference, self._options(run.parent))
        return self._server.deliver(*where, fault, self._life_timeout, forgive=forgive)

    def _deliver(self, run: Path) -> None:
        """Deliver as `trackers sync` does: start new processes while they may make progress."""
        for number in range(_MOST_LIVES):
            before = self._ledger(run)
            if self._deliver_once(run, None, forgive=number == 0):
                return
            now = self._ledger(run)
            died = now.suspicion != before.suspicion or not before.careful
            if number and not (died and can_progress(run, before, now)):
                return

    def _ledger(self, run: Path) -> Ledger:
        return load_ledger(run, "t") or Ledger("t")

    # -- results ------------------------------------------------------------------------------

    def _incomplete(self, run: Path) -> list[str]:
        ledger, last = self._ledger(run), len(runs.events_of(run))
        if ledger.state == "complete" and ledger.delivered == last:
            return []
        return [f"{ledger.delivered} of {last} events were delivered: {ledger.error or 'no error'}."]

    def _compared(self, run: Path, *, status: str | None = None, repeats: int = 0) -> list[str]:
        ledger = self._ledger(run)
        if (said := self._incomplete(run)) or self._read is None:
            return said
        stored = self._stored(run.parent, ledger.run_id, ledger.url)
        events = runs.events_of(run)
        said = differences(
            events,
            stored,
            ledger.changes,
            replaces=self._declared["repeated_steps"] == "replaced",
            repeats=repeats,
            single=self._declared["single_precision"],
            extra=params_of_tables(events) if self._declared["tables"] == "params" else None,
        )
        said += missing_items(events, stored, self._declared, ledger.changes)
        self._uncompared = uncompared(stored, self._declared)
        said = shortened([f"Counted as delivered, but {each}." for each in said])
        if status is not None and stored.status not in (None, status):
            said.append(f"The run ended as {status}, but the service has {stored.status}.")
        return said

    def _stored(self, folder: Path, run_id: str | None, url: str | None) -> Stored:
        assert self._read is not None
        return self._read(Delivered(folder, run_id, url))


def examine(
    tracker: str | type[Any],
    options: Mapping[str, Any] | None = None,
    folder: Path | str | None = None,
    read: Read | None = None,
) -> Findings:
    """Examine a tracker in a new `folder`, by default `conformance`, or `conformance-2` if that exists;
    return in sentences what it keeps and what it breaks:

    print(examine("my_module:MyTracker", {"path": "mine.db"}))

    Raises `ValueError` if the folder exists and is not empty.
    """
    require_own_process("examine")
    place = _unused_folder() if folder is None else Path(folder)
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise ValueError(f"{place} already exists; give another folder for the examination, or remove it")
    return Examination(tracker, options, place.resolve(), read).all()


def _unused_folder() -> Path:
    names = ("conformance", *(f"conformance-{number}" for number in range(2, 10_000)))
    return next(Path(name) for name in names if not Path(name).exists())


@functools.cache
def _fork_server(modules: tuple[str, ...]) -> ForkServer:
    made = ForkServer(modules)
    atexit.register(made.close)
    return made


def _reference(tracker: str | type[Any]) -> str:
    if isinstance(tracker, str):
        return reference_of(tracker)
    if "<locals>" in tracker.__qualname__:
        raise ValueError(
            f"{tracker.__qualname__} cannot be imported by other processes: define it at the top level of a "
            "module."
        )
    if tracker.__module__ == "__main__":
        return reference_of(f"__main__:{tracker.__qualname__}")
    return f"{tracker.__module__}:{tracker.__qualname__}"
