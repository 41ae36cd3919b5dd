"""The shipper: a child process that imports one tracker's SDK and delivers the journal to it.

The supervisor next to it starts it, watches it and ends it in time. It receives its work as JSON lines on its
standard input, so that no option ever shows in the process list:

1. a job (which tracker, with which options); it checks the tracker and answers with one line;
2. an order (which run); it delivers, and its exit code is the result;
3. when it follows a training, a line when that ends.

It has its own session, so signals of a terminal or a batch system do not reach it, and when the trainer is
killed it still drains the journal and gives the run its true status. Threads would not do: some SDKs block
the interpreter's exit (Aim joins a queue in a finaliser), and no try/except prevents that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

from fmstune.access import lacks_home, unusable_path, what_and_remedy
from fmstune.delivery.ledger import Ledger, ledger_path, load_ledger
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.log import ShipperLog
from fmstune.delivery.shipping.orders import Orders, Pauses
from fmstune.delivery.shipping.priority import lower_while_importing
from fmstune.delivery.shipping.progress import DeliveryFailed, RunRemoved, cause_text
from fmstune.delivery.shipping.watch import TrainerWatch
from fmstune.secrets.redaction import know_secrets, process_redactor
from fmstune.system import locks
from fmstune.system.collector import collect_rarely, imports_done
from fmstune.trackers.base import Tracker, installed_version
from fmstune.trackers.built_in import unmet
from fmstune.trackers.compat import OldShapeTracker, own_callback_of
from fmstune.trackers.places import place_of, return_to
from fmstune.trackers.records import Check, CheckState, TrackerOptionError
from fmstune.trackers.registry import BrokenTracker, build_tracker
from fmstune.user_code import enter_tracker_process

# A tracker may end the process with any code: these only count if the shipper recorded them (`note_end`).
_SET_HOME = "set HOME to a directory: this user has none"
EXIT_DONE = 77
EXIT_RETRY = 75  # EX_TEMPFAIL: the ledger has the progress, and why it stopped
EXIT_AGAIN = 74  # the same, but a new process may get further at once
EXIT_BUSY = 76  # another shipper delivers this run to this tracker


def main(trainer: TrainerWatch) -> int:
    """Do the job and the order given on standard input."""
    collect_rarely()
    orders = Orders(sys.stdin.fileno())
    answers = _take_standard_output()
    _prefer_for_oom_kill()
    log = ShipperLog()  # before anything else is imported or started: it forks
    trainer.note_log(log.reader)
    if not (line := orders.line()):
        return EXIT_DONE
    job = json.loads(line)
    if job["in_background"]:
        lower_while_importing()
    sys.path[:] = job["sys_path"]
    enter_tracker_process()
    if any(
        action == "error" for action, *_ in warnings.filters
    ):  # of -W or PYTHONWARNINGS; SDKs warn at import
        warnings.resetwarnings()
    try:
        tracker = build_tracker(job["reference"], job["name"], job["options"])
    except BaseException as error:
        found = _not_built(error, job["name"])
        _answer(answers, found)
        line = "" if job["check"] else orders.line()
        if line:
            order = json.loads(line)
            know_secrets(order["secrets"])
            if not order["look"]:
                why = ". ".join(filter(None, (found.detail, found.remedy)))
                _note(Path(order["directory"]), job, why)
        return EXIT_RETRY
    if (secret := return_to(tracker, job["place"])) is not None:
        detail = f"its variable {secret} held a secret, which the ledger does not keep"
        if job["check"]:
            _answer(answers, Check("bad_option", detail, f"set {secret} again"))
        return EXIT_RETRY
    if job["check"]:
        found, in_process = _asked(tracker, check(tracker, job["timeout"]))
        _answer(answers, found, in_process=in_process, repeated=tracker.repeated_steps)
    answers.close()
    line = orders.line()
    return _ship(tracker, job, json.loads(line), orders, trainer, log) if line else EXIT_DONE


def check(tracker: Tracker, timeout: float) -> Check:
    """Check whether the tracker is installed, can be imported, and could track a run now."""
    cls = type(tracker.inner) if isinstance(tracker, OldShapeTracker) else type(tracker)
    package, hint = getattr(cls, "package", None), getattr(cls, "install_hint", None)
    if package:
        version = installed_version(package, getattr(cls, "distributions", ()))
        remedy = hint or f"pip install {package}"
        command = remedy.startswith("pip ")  # else more is needed, such as another Python
        if version is None:
            return Check(
                "not_installed",
                f"the package {package} is not installed",
                f"run `{remedy}`" if command else remedy,
            )
        if needed := unmet(cls, version):
            return Check(
                "unsupported",
                f"{package} {version} is installed, but fmstune needs {needed}",
                f"run `pip install '{needed}'`",
            )
        try:
            importlib.import_module(package)
        except BaseException as error:
            found = f"{package} {version} cannot be imported: {type(error).__name__}: {error}"
            again = f"install it again: `{remedy} --force-reinstall`" if command else remedy
            return Check("broken", found, _SET_HOME if lacks_home(error) else again)
    try:
        answer: Any = tracker.check(timeout)
        if isinstance(answer, Check) and answer.is_valid:
            return answer
        return Check(
            "broken",
            f"its check returned {answer!r:.100}",
            "let it return a Check with a known state, and texts",
        )
    except OSError as error:
        denied = isinstance(error, PermissionError)
        if denied or unusable_path(error):
            what, remedy = what_and_remedy(error) or (str(error), "see the tracker's own documentation")
            state: CheckState = "no_permission" if denied else "bad_option"
            return Check(state, f"its check failed: {what}", remedy or "use another path")
        # Like requests' own errors: the service cannot be reached now.
        return Check("unreachable", f"its check failed: {cause_text(error)}", "try again later")
    except BaseException as error:
        return Check(
            "broken",
            f"its check failed: {type(error).__name__}: {error}",
            _SET_HOME if lacks_home(error) else "see the tracker's own documentation",
        )


def _asked(tracker: Tracker, found: Check) -> tuple[Check, bool]:
    """The result of the check, and whether the tracker provides a vendor's callback. It is requested here,
    which imports the SDK."""
    if not (found.ok or found.outage):
        return found, False
    try:
        return found, own_callback_of(tracker) is not None
    except BaseException as error:
        detail = f"its callback cannot be had: {type(error).__name__}: {error}"
        return Check("broken", detail, "see the tracker's own documentation"), False


def _not_built(error: BaseException, name: str) -> Check:
    if isinstance(error, TrackerOptionError):
        return Check("bad_option", str(error), f"fix [trackers.{name}] or --set trackers.{name}.KEY=VALUE")
    if isinstance(error, BrokenTracker) and error.flaw:
        return Check("broken", error.flaw)
    if isinstance(error, BrokenTracker):
        return Check("broken", str(error), "install it again, or fix its import")
    what, remedy = what_and_remedy(error) or (str(error), "")
    return Check(
        "no_permission" if isinstance(error, PermissionError) else "broken",
        f"it cannot be created: {type(error).__name__}: {what}",
        remedy or f"check its options in [trackers.{name}]",
    )


def _ship(
    tracker: Tracker,
    job: dict[str, Any],
    order: dict[str, Any],
    orders: Orders,
    trainer: TrainerWatch,
    log: ShipperLog,
) -> int:
    imports_done()  # with the check
    directory = Path(order["directory"])
    path = ledger_path(directory, job["name"])
    path.parent.mkdir(parents=True, exist_ok=True)
    know_secrets(order["secrets"])
    log.write_to(path.with_suffix(".log"), order["secrets"])
    trainer.allow(float(order["close_timeout"]))
    if locks.acquire(path.with_suffix(".lock")) is None:
        return EXIT_BUSY
    follow, parent = bool(order["follow"]), int(job["parent"])
    ledger = load_ledger(directory, job["name"]) or Ledger(job["name"])
    ledger = dataclasses.replace(
        ledger,
        reference=job["reference"],
        cwd=ledger.cwd or str(Path.cwd()),
        place=place_of(tracker) if ledger.run_id is None else ledger.place,
        module_path=_module_path(job["reference"]),
        options=process_redactor().mapping(job["options"]),
    )
    delivery = None
    try:
        delivery = Delivery(directory, tracker, ledger, parent if follow else None, forgive=order["forgive"])
        if order["look"]:
            _leave(EXIT_DONE if delivery.look() else EXIT_RETRY, log, trainer)
        delivery.run(
            lambda: not follow or trainer.gone, Pauses(orders, during_training=order["during_training"])
        )
    except RunRemoved:  # this must be no other run's ledger
        _leave(EXIT_DONE, log, trainer)
    except DeliveryFailed as error:
        print(f"{time.strftime('%F %T')} {error}", file=sys.stderr)
        # Not through the interpreter's exit: Aim and others join their queues there, forever.
        _leave(EXIT_AGAIN if error.again else EXIT_RETRY, log, trainer)
    except BaseException as error:  # our own, or one that an SDK throws into this thread: log it
        if delivery is not None and delivery.run_is_removed:
            _leave(EXIT_DONE, log, trainer)
        print(f"{time.strftime('%F %T')} {cause_text(error)}", file=sys.stderr)
        _note(directory, job, cause_text(error))
        _leave(EXIT_RETRY, log, trainer)
    return _leave(EXIT_DONE, log, trainer)


def _module_path(reference: str) -> str:
    """The directory from which the module in a reference was imported; empty for a script, whose reference
    is its path."""
    name = reference.rpartition(":")[0]
    file = getattr(sys.modules.get(name), "__file__", None)
    if not isinstance(file, str):
        return ""
    path = Path(file).resolve()
    folders = name.count(".") + (path.name == "__init__.py")
    return str(path.parents[folders])


def _note(directory: Path, job: Mapping[str, Any], error: str) -> None:
    """Record in the ledger what ended this process, if the disk is not full."""
    with contextlib.suppress(OSError):
        ledger = load_ledger(directory, job["name"])
        if ledger is None:
            options = process_redactor().mapping(job["options"])
            ledger = Ledger(job["name"], job["reference"], options, str(Path.cwd()))
        dataclasses.replace(ledger, error=error, error_time=time.time(), state="behind").save(directory)


def _leave(code: int, log: ShipperLog, trainer: TrainerWatch) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # whatever the tracker has put there
            stream.flush()
    log.end()
    trainer.note_end(code)
    os._exit(code)


def _prefer_for_oom_kill() -> None:
    """When memory runs out, let Linux end this process rather than the training."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _take_standard_output() -> IO[str]:
    """Reserve standard output for the answers; SDK output goes to the log, once there is one."""
    return os.fdopen(os.dup(1), "w", encoding="utf-8")


def _answer(answers: IO[str], result: Check, *, in_process: bool = False, repeated: str = "kept") -> None:
    message = {"check": dataclasses.asdict(result), "in_process": in_process, "repeated_steps": repeated}
    answers.write(json.dumps(message) + "\n")
    answers.flush()
