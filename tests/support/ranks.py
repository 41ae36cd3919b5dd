"""Multi-process trainings: how they are started, and callbacks that disturb one rank."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from tests.support.aim_servers import free_port
from tests.support.commands import FAST, Command, start
from tests.support.waiting import wait_for

TWO = ["--nproc", "2", "--output-dir", "out", *FAST]
TORCHRUN = ["--standalone", "--nproc_per_node=2"]
"""Arguments of torch.distributed.run."""
ACCELERATE = ["launch", "--multi_gpu", "--num_processes", "2"]
"""Arguments of accelerate.commands.accelerate_cli."""

CALLBACKS = """\
import os, pathlib, signal, time
from transformers import TrainerCallback

class SecondRank(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if args.process_index == 1 and state.global_step == 2:
            self.fail()

class Fails(SecondRank):
    def fail(self):
        raise ValueError("the second step is cursed")

class Dies(SecondRank):
    def fail(self):
        os.kill(os.getpid(), signal.SIGKILL)

class DiesLate(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if args.process_index == 0 and state.global_step == 2:
            stopped = signal.getsignal(signal.SIGTERM)
            came = []
            signal.signal(signal.SIGTERM, lambda *signalled: (stopped(*signalled), came.append(1)))
            pathlib.Path("waits").touch()
            while not came:
                time.sleep(0.01)
        elif state.global_step == 2:
            while not pathlib.Path("waits").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

class Exits(SecondRank):
    def fail(self):
        os._exit(7)

class Quits(SecondRank):
    def fail(self):
        raise SystemExit(7)

class Stops(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = args.process_index == 1 and state.global_step == 2

class Alone(TrainerCallback):
    def asks(self, args, state, control, **what):
        for name, step in what.items():
            if args.process_index == 1 and state.global_step == step:
                setattr(control, f"should_{name}", True)

    def on_step_end(self, *given, **kwargs):
        self.asks(*given, save=1, log=2)

    def on_epoch_end(self, *given, **kwargs):
        self.asks(*given, evaluate=3)

    def on_evaluate(self, *given, **kwargs):
        self.asks(*given, save=3)

    def on_log(self, *given, **kwargs):
        self.asks(*given, training_stop=5)

class ReadsLate(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        if args.process_index == 1:
            from transformers import Trainer
            write = Trainer._save_rng_state
            Trainer._save_rng_state = lambda *given: (time.sleep(0.5), write(*given))

    def on_save(self, args, state, control, **kwargs):
        found = pathlib.Path(args.output_dir, f"checkpoint-{state.global_step}").iterdir()
        pathlib.Path(f"read-by-{args.process_index}").write_text(" ".join(each.name for each in found))

class Late(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        if args.process_index == 1:
            time.sleep(300)

class Slow(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        pathlib.Path(f"rank-{args.process_index}-{os.getpid()}").touch()
        if pathlib.Path("slow").exists():
            time.sleep(300)
"""
"""The content of mine.py, in the directory where the command runs."""
CURSED = "ValueError: the second step is cursed"


def run_ranks(
    processes: int, *arguments: str, cwd: Path, module: str = "fmstune"
) -> list[subprocess.CompletedProcess[str]]:
    """Run a command to its end in several processes that train together, as torchrun starts them."""
    return wait_for_ranks(start_ranks(processes, *arguments, cwd=cwd, module=module))


def start_ranks(processes: int, *arguments: str, cwd: Path, module: str = "fmstune") -> list[Command]:
    """Start a command in several processes that train together."""
    port, size = str(free_port()), str(processes)
    world = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

    return [
        start(*arguments, cwd=cwd, module=module, **world, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(processes)
    ]


def wait_for_ranks(processes: Sequence[Command]) -> list[subprocess.CompletedProcess[str]]:
    """Wait until processes that train together have ended."""
    with ThreadPoolExecutor(len(processes)) as threads:  # an unread pipe would block its rank, and so all
        said = threads.map(lambda process: process.communicate(), processes)
        return [
            subprocess.CompletedProcess(process.args, process.wait(), *both)
            for process, both in zip(processes, said, strict=True)
        ]


def with_callback(name: str) -> list[str]:
    """Arguments for a run with many steps and one of CALLBACKS."""
    return ["--max-steps", "400", "--set", f'run.callbacks=["mine:{name}"]']


def pids(directory: Path) -> list[int]:
    """The process id of each rank, once both are training."""
    wait_for(lambda: len(list(directory.glob("rank-*"))) == 2)
    return [int(file.name.rpartition("-")[2]) for file in directory.glob("rank-*")]


def have_ended(processes: list[int]) -> bool:
    """Whether all of these processes have ended."""
    running = []
    for pid in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            running.append(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return not any(running)


RANK = """
import os, signal, sys, time
launcher = os.getppid()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
came = []
signal.signal(signal.SIGINT, lambda *args: came.append(1))
print("ready", flush=True)
sys.stdin.readline()
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
while len(came) < 2 and os.getppid() == launcher: time.sleep(0.01)
sys.exit(len(came) < 2)
"""
"""Exits with 0 after two signals, which it handles once it has read a line."""


def slow_rank() -> subprocess.Popen[str]:
    rank = subprocess.Popen(
        [sys.executable, "-c", RANK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert rank.stdout is not None
    assert rank.stdout.readline() == "ready\n"
    return rank
