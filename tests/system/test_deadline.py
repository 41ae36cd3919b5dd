"""Foreign code is called with a deadline, and keeps no process from ending."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from fmstune.system.deadline import DeadlineOver, DeadlineThread


def raises(error: BaseException) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


def test_calls_run_one_after_another_in_one_thread() -> None:
    thread = DeadlineThread("calls", 60)
    names = [thread.call(lambda: threading.current_thread().name) for _ in range(2)]
    assert names == ["calls", "calls"]
    assert thread.call(lambda: thread.call(lambda: 3)) == 3
    for error in (ValueError("no"), SystemExit(3), TimeoutError("its own")):
        with pytest.raises(type(error)):
            thread.call(raises(error))
    thread.close()


def test_a_call_that_takes_too_long_is_abandoned_and_ends_at_its_next_instruction() -> None:
    thread = DeadlineThread("calls", 0.1)
    begun, woken, after = threading.Event(), threading.Event(), list[int]()

    def hang() -> None:
        begun.set()
        woken.wait()
        after.append(1)

    with pytest.raises(DeadlineOver, match=r"within 0\.1 s"):
        thread.call(hang)
    woken.set()
    thread._thread.join(60)
    assert not thread._thread.is_alive()
    assert after == []


LEFT = """
import atexit, sys, threading, time
from fmstune.system.deadline import DeadlineThread

def vendor():
    threading.Thread(target=time.sleep, args=(3600,), daemon=False).start()
    atexit.register(time.sleep, 3600)

DeadlineThread("vendor", 0.5).call(vendor)
from fmstune.cli.main import main
sys.argv[1:] = ["trackers", sys.argv[1], "--json"]
main()
"""


STOPPED = """
import time
from fmstune.system.deadline import DeadlineThread

def call():
    print("called", flush=True)
    for _ in range(12):
        time.sleep(0.05)
    return "returned"

print(DeadlineThread("sdk", 2.0).call(call))
"""


def test_the_time_for_which_a_process_is_stopped_does_not_count() -> None:
    process = subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "called\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    assert process.communicate()[0] == "returned\n"


@pytest.mark.parametrize(("command", "code"), [("list", 0), ("lisst", 2)])
def test_the_process_ends_on_time_with_its_exit_code_whatever_an_sdk_left_behind(
    command: str, code: int
) -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", LEFT, command], capture_output=True, text=True)
    assert done.returncode == code
    assert time.monotonic() - began < 600


def test_a_program_that_calls_the_command_is_not_ended_with_it() -> None:
    """Tests do so: one was once killed by this in the middle of others, five minutes later."""
    code = (
        "import time\n"
        "from fmstune.cli.main import main\n"
        "from fmstune.system.deadline import DeadlineThread\n"
        "DeadlineThread('vendor', 0.05).call(list)\n"
        "try: main(['trackers', 'list', '--json'])\n"
        "except SystemExit: time.sleep(0.3)\n"
        "print('went on')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("went on\n")
