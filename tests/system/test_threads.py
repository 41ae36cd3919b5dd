"""fmstune uses as many threads as this process may use, unless the user sets a number; waiting threads
sleep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmstune.system import cgroups, threads
from tests.support.waiting import wait_for

VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "SLURM_CPUS_PER_TASK")
SETTLED = """\
import ctypes, glob, importlib.util, json, os, sys
from fmstune.system import threads
if "one" in sys.argv: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.cpu_count = lambda: 64
line = threads.set_threads()
assert "torch" not in sys.modules
if line is None: print(json.dumps([None, None, os.environ.get("GOMP_SPINCOUNT")])); sys.exit()
(folder,) = importlib.util.find_spec("torch").submodule_search_locations
(openmp,) = glob.glob(folder + "/lib/lib[gi]omp*") or glob.glob(folder + "/lib/libomp*")
waiting = os.environ.get("OMP_WAIT_POLICY") or os.environ.get("GOMP_SPINCOUNT")
print(json.dumps([line, ctypes.CDLL(openmp).omp_get_max_threads(), waiting]))
"""
"""torch's OpenMP tells how many threads torch has, and loads in no time."""


def settled(*arguments: str, **environment: str) -> list[object]:
    """The printed line, torch's number of threads and their wait policy, in a new process."""
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", SETTLED, *arguments],
        env=inherited | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: list[object] = json.loads(done.stdout)
    return found


def test_torch_uses_what_the_cpu_affinity_allows_and_a_line_says_so() -> None:
    line = "1 of the 64 processors of this machine: the affinity of this process"
    assert settled("one") == [line, 1, "20000"]


def test_the_users_own_variables_take_precedence() -> None:
    assert settled("one", OMP_NUM_THREADS="2", GOMP_SPINCOUNT="9") == [None, None, "9"]


@pytest.mark.parametrize("chosen", ["1", "1,4"])
def test_a_line_says_that_a_variable_leaves_processors_unused(chosen: str) -> None:
    """`accelerate launch` sets it to 1, and a shell may have kept it."""
    line = "1 of the 64 processors of this machine: OMP_NUM_THREADS"
    assert settled(OMP_NUM_THREADS=chosen, SLURM_CPUS_PER_TASK="3") == [line, 1, "20000"]
    assert settled(OMP_NUM_THREADS=chosen, WORLD_SIZE="2") == [None, None, "20000"]  # divided


@pytest.mark.parametrize("chosen", ["abc", "0", "-1", "1.5", "2,x"])
def test_a_variable_that_is_no_number_is_named_and_replaced(chosen: str) -> None:
    line = f"1 of the 64 processors of this machine: OMP_NUM_THREADS='{chosen}' is not a number of threads"
    assert settled("one", OMP_NUM_THREADS=chosen) == [line, 1, "20000"]


FROM_PYTHON = """\
import json, os, sys
from types import ModuleType
os.cpu_count = lambda: 64
import fmstune
class Extensions:
    def __init__(self, *given):
        assert "torch" not in sys.modules
        import torch
        raise fmstune.errors.ConfigError("torch is there")
trainer = sys.modules["fmstune.training.extensions"] = ModuleType("extensions")
trainer.Extensions = Extensions
before = dict(os.environ)
try:
    fmstune.train(settings={"model.path": "demo", "data.train": "demo"}, quiet=True)
except fmstune.errors.ConfigError as error:
    assert str(error) == "torch is there"
import torch
changed = [name for name in {*before, *os.environ} if name.startswith("OMP_")]
print(json.dumps([torch.get_num_threads(), changed]))
"""
"""Here, the first module that imports torch does nothing else; the rest of a trainer takes longer."""


def test_a_run_from_python_respects_the_limits_too_and_restores_the_environment() -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", FROM_PYTHON],
        env=inherited | {"SLURM_CPUS_PER_TASK": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == [1, []]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 16 processors whose control groups are in a folder of this test."""
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path / "fs")
    monkeypatch.setattr(cgroups, "_OF_PROCESS", tmp_path / "cgroup")
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    return tmp_path


numbers = st.floats(0.01, 40)


@given(st.lists(st.none() | numbers, min_size=1, max_size=3), st.booleans(), st.none() | st.integers(1, 40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_lowest_of_quotas_and_slurms_limit_counts(
    machine: Path, quotas: list[float | None], unified: bool, slurm: int | None
) -> None:
    folder = machine / "fs" if unified else machine / "fs" / "cpu"
    for quota in quotas:  # nested groups
        folder.mkdir(parents=True, exist_ok=True)
        most = None if quota is None else max(1, round(quota * 100_000))
        if unified:
            (folder / "cpu.max").write_text(f"{'max' if most is None else most} 100000\n")
        else:
            (folder / "cpu.cfs_quota_us").write_text(f"{-1 if most is None else most}\n")
            (folder / "cpu.cfs_period_us").write_text("100000\n")
        folder = folder / "job"
    path = "/" + "/".join(["job"] * (len(quotas) - 1))
    (machine / "cgroup").write_text(f"0::{path}\n" if unified else f"4:cpu,cpuacct:{path}\n")
    with pytest.MonkeyPatch.context() as environment:
        if slurm is not None:
            environment.setenv("SLURM_CPUS_PER_TASK", str(slurm))
        found = threads.processors()
    limits = [quota for quota in quotas if quota is not None] + [slurm or 16, 16]
    assert min(limits) - 1e-3 <= found.count < max(1, min(limits)) + 1


def test_processes_share_the_processors_even_if_torch_has_counted_the_gpus(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "15")
    assert threads.set_threads()  # as `--nproc auto` does beforehand
    assert os.environ["OMP_NUM_THREADS"] == "15"
    monkeypatch.setitem(sys.modules, "torch", sys)
    assert threads.set_threads() == "15 of the 16 processors of this machine: SLURM_CPUS_PER_TASK"
    assert threads.set_threads(processes=3) is None
    assert os.environ["OMP_NUM_THREADS"] == "5"
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        os.environ.pop(name, None)


@pytest.mark.parametrize("text", ["", "max", "100 0", "x y", "-5 100000"])
def test_an_invalid_quota_limits_nothing(text: str, machine: Path) -> None:
    (machine / "fs").mkdir()
    (machine / "fs" / "cpu.max").write_text(text)
    (machine / "cgroup").write_text("0::/\n")
    assert threads.processors() == threads.Processors(16, "this machine")


@pytest.mark.parametrize(
    ("running", "how"), [(1, "GOMP_SPINCOUNT"), (2, "OMP_WAIT_POLICY"), (20, "OMP_WAIT_POLICY")]
)
def test_waiting_threads_sleep_while_other_processes_are_busy(
    running: int, how: str, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "stat").write_text(f"cpu  1 2 3\nprocs_running {running}\nprocs_blocked 0\n")
    monkeypatch.setattr(threads, "_STATISTICS", machine / "stat")
    threads.set_threads()
    found = [name for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if os.environ.pop(name, None)]
    os.environ.pop("OMP_NUM_THREADS", None)
    assert found == [how]


def test_processes_of_the_run_itself_do_not_make_the_machine_busy() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as started:
        try:
            wait_for(lambda: threads._running_here() >= 2)
        finally:
            started.kill()
    wait_for(lambda: threads._running_here() == 1)
