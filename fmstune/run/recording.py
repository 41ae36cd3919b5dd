"""Keep the journal of a run until its end, which it gets whatever happens."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NoReturn

from fmstune.config.inspect.dump import to_mapping
from fmstune.config.schema.tables import RunConfig
from fmstune.console import RunConsole
from fmstune.delivery.delivered_files import release_links
from fmstune.delivery.journal.labels import labels_of
from fmstune.delivery.journal.reader import Header
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.ledger import highest_known
from fmstune.delivery.place import become_own_run, original_of, record_place
from fmstune.delivery.recorder import Recorder, active
from fmstune.delivery.shippers import Fleet
from fmstune.errors import Interrupted
from fmstune.launch.environment import is_main_process
from fmstune.launch.failures import in_words
from fmstune.layout import ERROR_LOG, JOURNAL_NAME, TRACKING_DIR
from fmstune.run import provenance
from fmstune.run.directory import RunDirectory
from fmstune.run.ending import StopSignals
from fmstune.run.tracking import reports
from fmstune.secrets.redaction import Redactor, hide
from fmstune.system.locks import Lock
from fmstune.text import counted
from fmstune.trackers.records import Status


@contextlib.contextmanager
def recorded(
    config: RunConfig,
    directory: RunDirectory,
    fleet: Fleet,
    redactor: Redactor,
    out: RunConsole,
    lock: Lock | None = None,
) -> Iterator[Recorder]:
    """Keep the run's journal, with an active Recorder: whatever happens, it ends with the true status, and
    the shippers get time to deliver it. `lock` is the journal's, if this process already holds it."""
    if not is_main_process():
        out.begin(directory.path)
        yield Recorder(JournalWriter(Path(os.devnull), _header(config, directory)))
        return
    process = os.getpid()
    ending = StopSignals()
    header, known = _prepare_directory(config, directory, out)
    journal = _open_journal(directory.path, header, known, out, lock, ending)
    recorder, began = Recorder(journal), time.monotonic()
    status: Status = "failed"
    error: str | None = None
    try:
        record_place(directory.path, journal.header)
        out.begin(directory.path)
        fleet.start_delivery(directory.path, tend=journal.tend)
        ending.release()
        with active(recorder):
            # Before anything else: without this mark, events after a status are leftovers of that run.
            if directory.checkpoint is not None or journal.last_seq > journal.header.after:
                recorder.resumed(directory.step, labels_of(header))
            _track_identity(recorder, config)
            yield recorder
        ending.hold()
        status = "finished"
    except BaseException as stopped:
        ending.hold()
        status, error = _status_of(stopped)
        if status == "failed" and os.getpid() == process:
            _write_error_log(directory.path / ERROR_LOG, redactor, stopped)
        raise
    finally:
        if os.getpid() != process:
            _exit_child()
        closing = functools.partial(recorder.close, status, error, seconds=time.monotonic() - began)
        _end(recorder, fleet, directory.path, config.tracking.trackers, out, ending, closing)


def _prepare_directory(config: RunConfig, directory: RunDirectory, out: RunConsole) -> tuple[Header, int]:
    """The header of the run's journal, in a directory that is ready for it, and the highest number of its
    events that is known: a run that is resumed without its journal, or as a copy of a run that still exists,
    is a run of its own."""
    from fmstune.run.tracker_runs import continue_runs

    tracking = directory.path / TRACKING_DIR
    tracking.mkdir(parents=True, exist_ok=True)
    earlier, known = 0, highest_known(directory.path)
    if directory.checkpoint is not None and not (tracking / JOURNAL_NAME).exists():
        earlier = max(continue_runs(directory.checkpoint, directory.path, config.tracking.trackers), known)
        if known:
            out.warn(
                f"the run's journal is gone, with its {known} events: it begins again, as a run of its own"
            )
    header = _header(config, directory, earlier)
    if original := original_of(directory.path):
        become_own_run(directory.path, header)
        out.say("copy", f"of {original}, which still exists: continues as a separate run, also in trackers")
    return header, known


def _open_journal(
    directory: Path, header: Header, known: int, out: RunConsole, lock: Lock | None, ending: StopSignals
) -> JournalWriter:
    """Start or continue the journal. From here on, signals are held: what was started also gets an end."""
    path = directory / TRACKING_DIR / JOURNAL_NAME
    ending.watch()
    ending.hold()
    try:
        return JournalWriter(path, header, on_problem=out.warn, known=known, lock=lock)
    except BaseException:
        ending.leave()
        raise


def _end(
    recorder: Recorder,
    fleet: Fleet,
    directory: Path,
    trackers: Collection[str],
    out: RunConsole,
    ending: StopSignals,
    closing: Callable[[], None],
) -> None:
    """End the journal with the run's status (`closing`), and deliver it; a failing step does not stop the
    others."""

    def guarded(what: str, step: Callable[..., None], *arguments: Any) -> Callable[[], None]:
        return functools.partial(_guarded, out, what, step, *arguments)

    journal = recorder.journal
    steps: list[Callable[[], object]] = [
        guarded("recording the end", closing),
        ending.release,
        functools.partial(out.phase, "delivering"),
        guarded("closing the trackers", fleet.finish),
        guarded("closing the journal", journal.close),
        *(guarded("saving a tracker's state", each.save) for each in reversed(recorder.in_process)),
        guarded("releasing links", release_links, directory, fleet.trackers),
        guarded("reporting the deliveries", _show, directory, journal, out, trackers),
        # Only the summary is left: a signal during it (from torchrun, which ends the other ranks) would hide
        # how the run ended.
        ending.hold,
        guarded("summarising the run", out.end, directory),
    ]
    with contextlib.ExitStack() as stack:  # calls in reverse order, also after a signal in one of them
        stack.callback(ending.leave)
        stack.enter_context(active(recorder))  # to count metrics that threads still track
        for step in reversed(steps):
            stack.callback(step)


def _guarded(out: RunConsole, what: str, step: Callable[..., None], *arguments: Any) -> None:
    """Run one step of a run's end: its errors must not fail a training that succeeded."""
    try:
        step(*arguments)
    except Exception as error:
        out.warn(f"{what} failed: {in_words(error)}")


def _show(directory: Path, journal: JournalWriter, out: RunConsole, used: Collection[str]) -> None:
    for line in reports(directory, used):
        out.say(line.tracker, line.line())
        for change in line.adapted():
            out.say("", change)
    if lost := journal.unrecorded - journal.late:
        out.warn(f"{counted(lost, 'event')} could not be written to the journal, and are lost")
    if journal.late:
        out.warn(
            f"{counted(journal.late, 'event')} arrived after the end of the training, from a thread or child "
            "process that was still running: not recorded. End it in on_train_end"
        )
    if journal.lost:
        out.warn(f"{counted(journal.lost, 'event')} of the damaged journal cannot be recovered")


def _exit_child() -> NoReturn:
    """Exit a forked child that leaves the training: only its parent does the rest."""
    error = sys.exc_info()[1]
    code = 0 if error is None else 1
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code & 0xFF)


def _status_of(stopped: BaseException) -> tuple[Status, str | None]:
    from fmstune.launch.rank import cause_of_lost_peer, failure_of_another

    if isinstance(stopped, (Interrupted, KeyboardInterrupt)):
        another = failure_of_another()  # after which torchrun sends SIGTERM to this process
        return ("failed", another) if another else ("interrupted", None)
    cause = cause_of_lost_peer(str(stopped))
    if cause is not None:
        return "failed", cause
    first = next(iter(str(stopped).strip().splitlines()), "")
    return "failed", f"{type(stopped).__name__}: {first}" if first else type(stopped).__name__


def _track_identity(recorder: Recorder, config: RunConfig) -> None:
    """Track the run's identity: the user's params, the resolved configuration, the versions, the commit."""
    if config.params:
        recorder.set_params(config.params, "params")
    recorder.set_params({k: v for k, v in to_mapping(config).items() if k != "params"}, "config")
    recorder.set_params(provenance.packages(), "packages")
    commit = provenance.git(Path.cwd())
    if commit:
        recorder.set_params(commit, "git")


def _header(config: RunConfig, directory: RunDirectory, after: int = 0) -> Header:
    run, found = config.run, config.run.name or config.training.get("run_name")
    return Header(
        uuid.uuid4().hex,
        hide(found or directory.path.resolve().name),
        time.time(),
        str(Path.cwd()),
        after,
        None if run.group is None else hide(run.group),
        tuple(map(hide, run.tags)),
        None if run.notes is None else hide(run.notes),
    )


def _write_error_log(path: Path, redactor: Redactor, error: Any) -> None:
    with contextlib.suppress(OSError):  # the disk may have failed; the error itself is printed
        path.write_text(redactor.text(traceback.format_exc()), encoding="utf-8")
        error.log = path
