"""Which of several processes is reported as the cause, whatever torchrun did to the others by then."""

from __future__ import annotations

import runpy
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.launch import failures
from fmstune.launch.failures import failure, user_error
from fmstune.launch.rank import Cause
from tests.support import commands


@dataclass
class Failed:
    """A failed process as torchrun reports it, which it does only for its own processes."""

    local_rank: int
    exitcode: int
    timestamp: int = 100

    def signal_name(self) -> str:
        return signal.Signals(-self.exitcode).name


@dataclass
class Error:
    """torchrun's error, with the processes that failed."""

    failures: dict[int, Failed] = field(default_factory=dict)

    def get_first_failure(self) -> tuple[int, Failed]:
        return next(iter(self.failures.items()))


@given(
    others=st.lists(st.sampled_from(["SIGTERM", "143", "interrupted"]), min_size=1, max_size=3),
    code=st.integers(1, 127),
    before=st.booleans(),
)
def test_a_rank_that_ended_without_a_message_is_the_cause_though_torchrun_stopped_the_others(
    others: list[str], code: int, before: bool
) -> None:
    error, causes = Error(), []
    for rank, how in enumerate(others):
        error.failures[rank] = Failed(rank, -signal.SIGTERM if how == "SIGTERM" else 143)
        if how != "SIGTERM":
            causes.append(Cause("interrupted by SIGTERM.", 143, True, 99.0 if before else 101.0, rank))
    error.failures[len(others)] = Failed(len(others), code)
    found = failure(error, causes)
    assert found.exit_code == 1
    assert str(found) == (
        f"the process of rank {len(others)} exited with code {code}, without reporting a cause."
    )


@given(moment=st.floats(0, 200))
def test_the_message_of_a_rank_takes_precedence_over_interrupted_ranks(moment: float) -> None:
    error = Error({0: Failed(0, 143), 1: Failed(1, 2)})
    causes = [
        Cause("interrupted by SIGTERM.", 143, True, moment, 0),
        Cause("no rows in a.jsonl", 2, True, 100.0, 1),
    ]
    found = failure(error, sorted(causes, key=lambda cause: cause.time))
    assert (str(found), found.exit_code) == ("no rows in a.jsonl", 2)


def test_if_all_ranks_were_interrupted_the_interruption_is_the_cause() -> None:
    error = Error({0: Failed(0, 143), 1: Failed(1, 143)})
    found = failure(error, [Cause("interrupted by SIGTERM.", 143, True, 1.0, rank) for rank in (0, 1)])
    assert (str(found), found.exit_code) == ("interrupted by SIGTERM.", 143)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("int(os.environ.get('LIMIT'))", "ValueError: invalid literal for int() with base 10: 'Many'"),
        ("read(os.environ['LIMIT'])", "ValueError: invalid literal for int() with base 10: 'Many'"),
        ("logging.getLogger().setLevel(os.environ['LIMIT'].upper())", "ValueError: Unknown level: 'MANY'"),
        ("{}[os.environ['LIMIT']]", "KeyError: 'Many'"),
        ("raise OSError('LIMIT is ' + os.environ['LIMIT'])", "OSError: LIMIT is Many"),
    ],
)
def test_a_variable_that_a_library_cannot_read_is_named(
    code: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "library.py"
    library.write_text(f"import logging, os\ndef read(text):\n    return int(text)\n{code}\n")
    monkeypatch.setenv("LIMIT", "Many")
    monkeypatch.setenv("OTHER", "Many")
    with pytest.raises((ValueError, KeyError, OSError)) as raised:
        runpy.run_path(str(library))
    named = user_error(raised.value)
    assert str(named) == f"LIMIT='Many': {says}. Correct or unset this environment variable."


def test_a_variable_that_only_has_the_same_value_is_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "library.py").write_text("int('Many')")
    monkeypatch.setenv("LIMIT", "Many")
    monkeypatch.setattr(failures, "_INNERMOST", 1)  # this test's own file has the name
    with pytest.raises(ValueError, match="Many") as raised:
        runpy.run_path(str(tmp_path / "library.py"))
    assert user_error(raised.value) is None


def test_a_command_names_the_variable_that_stopped_an_import(tmp_path: Path) -> None:
    done = commands.fmstune("data", cwd=tmp_path, fresh=True, HF_HUB_ETAG_TIMEOUT="soon")
    assert done.returncode == 2
    assert done.stderr.startswith("error: HF_HUB_ETAG_TIMEOUT='soon': ValueError: ")
