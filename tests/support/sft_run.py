"""An sft run, and the numbers that it is expected to report."""

from __future__ import annotations

import io
import math
import random
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import assume
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

from fmstune import demo
from fmstune.config.load.load import load
from fmstune.console import RunConsole
from fmstune.errors import Interrupted
from fmstune.run.run import RunResult, run
from fmstune.training.extensions import Extensions
from tests.support.fed import Fed, Feeding
from tests.support.preferred import write
from tests.support.sft_case import Case
from tests.support.sft_oracle import Row, Step, Tensors, Training, full, lora, packs, pieces
from tests.support.sft_rows import some_rows

IGNORED = -100
_ALPHA = 32


@dataclass
class Ran:
    """A run that has ended, what it was given, and what it printed."""

    case: Case
    rows: list[list[Row]]
    """Of each source."""
    evaluated: list[Row]
    result: RunResult
    shown: str
    initial: Tensors
    batches: list[list[Fed]]
    interrupted: bool


def ran(case: Case) -> Ran:
    """Write the data of a case to a folder, and run it; resumes it if it is interrupted."""
    folder = Path(tempfile.mkdtemp(dir="."))
    chance, rows, sources = random.Random(case.seed), [], []
    for number, (count, weight) in enumerate(case.sources):
        written, learnt = some_rows(
            case.kind, count, chance, weighted=case.weighted, all_tokens=case.all_tokens
        )
        write(f"{folder}/{number}.jsonl", written)
        rows.append(learnt)
        assume(documents(learnt, case))
        of_weight = "" if weight is None else f", weight = {weight}"
        sources.append(f'{{path = "{folder}/{number}.jsonl"{of_weight}}}')
    written, evaluated = some_rows(
        case.kind, case.eval_rows, chance, weighted=case.weighted, all_tokens=case.all_tokens
    )
    write(f"{folder}/eval.jsonl", written)
    assume(documents(evaluated, case))
    sets = ["model.path=demo", f"data.train=[{', '.join(sources)}]", "resources.interval=0", *case.sets()]
    sets += [f"data.eval={folder}/eval.jsonl"] if case.eval_every else []
    feeding, screen = Feeding(case.stop_at), io.StringIO()

    def tuned(feeding: Feeding, resume: str | None = None) -> RunResult:
        config = load(None, [("training.output_dir", f"{folder}/out", "--output-dir")], sets)
        console = RunConsole(Console(file=screen, width=250))
        return run(config, console, resume=resume, extensions=Extensions((feeding,)))

    try:
        result = tuned(feeding)
        batches, interrupted = feeding.batches, False
    except Interrupted:
        screen.truncate(0)
        again = Feeding()
        result = tuned(again, "auto")
        batches, interrupted = feeding.batches + again.batches, True
    return Ran(case, rows, evaluated, result, screen.getvalue(), feeding.initial, batches, interrupted)


@dataclass
class Expected:
    """What a run is expected to report: its steps, its evaluations by their step, the total of steps, the
    weights at the end, the best step, and how often each row was learnt."""

    steps: list[Step]
    epochs: list[float]
    evaluations: dict[int, dict[str, float]]
    total: int
    weights: Tensors
    best: int | None


def cut(rows: Sequence[Row], case: Case) -> list[Row]:
    """Rows as they are learnt if not packed: truncated, without those that have nothing to learn."""
    most = case.max_length
    if most is None:
        return list(rows)
    found = [row.part(-most, len(row.ids)) if case.keep_end else row.part(0, most) for row in rows]
    return [row for row in found if row.trained]


def documents(rows: Sequence[Row], case: Case) -> list[Row]:
    """The rows that the model sees apart from each other."""
    if not case.packing:
        return cut(rows, case)
    assert case.max_length is not None
    kept = cut(rows, case) if case.packing == "bfd" else list(rows)
    return pieces(kept, case.max_length, case.packing)


def times(ran: Ran) -> list[tuple[list[Row], int]]:
    """The documents of each source, and how many of them an epoch has: with weights, the source with the most
    documents for its weight is used once, and the others are repeated."""
    case = ran.case
    kept = [documents(each, case) for each in ran.rows]
    weights = [weight for _, weight in case.sources]
    if None in weights:
        return [(each, len(each)) for each in kept]
    scale = max(len(each) / (weight or 1) for each, weight in zip(kept, weights, strict=True))
    return [
        (each, max(len(each), round((weight or 1) * scale)))
        for each, weight in zip(kept, weights, strict=True)
    ]


def units(ran: Ran) -> int:
    """The number of rows of an epoch, packed or not."""
    case = ran.case
    if case.packing in ("bfd", "bfd_split"):
        lengths = [len(row.ids) for each, _ in times(ran) for row in each]
        return packs(lengths, case.max_length or 0)
    return sum(count for _, count in times(ran))


@dataclass(frozen=True)
class Plan:
    """The batches of each update, and where an epoch ends."""

    updates: list[int]
    """The number of batches of each update of an epoch."""
    total: int
    """The number of updates."""

    def batches(self, update: int) -> int:
        """The number of batches of an update, counted from 0."""
        return self.updates[update % len(self.updates)]

    def epoch(self, done: int) -> float:
        """The epochs after so many updates."""
        whole, rest = divmod(done, len(self.updates))
        return whole + sum(self.updates[:rest]) / sum(self.updates)

    def ends_epoch(self, done: int) -> bool:
        return done % len(self.updates) == 0


def planned(ran: Ran) -> Plan:
    """The updates of a run."""
    case = ran.case
    if case.streaming:
        return Plan([case.several] * case.steps, case.steps)
    rows = units(ran)
    batches = rows // case.size if case.drop_last else math.ceil(rows / case.size)
    whole, rest = divmod(batches, case.several)
    updates = [case.several] * whole + [rest] * bool(rest)
    return Plan(updates, math.ceil(case.epochs * len(updates)) if case.epochs else case.steps)


def plain_model(weights: Mapping[str, torch.Tensor]) -> Any:
    """The demo's model with these weights, by their names with or without an adapter."""
    bare = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
        for name, weight in weights.items()
        if "lora_" not in name
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(demo.model_dir()))
    found = model.load_state_dict(bare, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["lm_head.weight"], [])  # tied
    return model.eval()


def expected(ran: Ran, batches: Sequence[Sequence[Row]]) -> Expected:
    """Train on these batches by hand."""
    case, plan = ran.case, planned(ran)
    model = plain_model(ran.initial)
    if case.rank:
        scale = _ALPHA / (math.sqrt(case.rank) if case.rslora else case.rank)
        initial = {
            name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight"): weight
            for name, weight in ran.initial.items()
            if "lora_A" in name
        }
        training = Training(model, lora(model, initial, scale), case.numbers)
    else:
        training = Training(model, full(model), case.numbers)
    evaluated = documents(ran.evaluated, case)
    found = Expected([], [], {}, plan.total, {}, None)
    if case.eval_every and case.eval_on_start:
        found.evaluations[0] = training.evaluate(evaluated)
    kept: dict[int, Tensors] = {}
    left, missed, best = iter(batches), 0, None
    for done in range(1, plan.total + 1):
        update = [next(left) for _ in range(plan.batches(done - 1))]
        assume(any(row.trained for batch in update for row in batch))  # else there is no loss
        found.steps.append(training.update(update, plan.total))
        found.epochs.append(plan.epoch(done))
        if not _evaluates(case, plan, done):
            continue
        found.evaluations[done] = training.evaluate(evaluated)
        kept[done] = training.copy()
        value = found.evaluations[done][case.best.removeprefix("eval_") or "loss"]
        better = best is None or (value > best if "accuracy" in case.best else value < best)
        best, missed = (value, 0) if better else (best, missed + 1)
        found.best = done if better else found.best
        if case.patience and missed >= case.patience:
            break
    assert next(left, None) is None
    found.weights = kept[found.best] if case.best and found.best else training.copy()
    return found


def _evaluates(case: Case, plan: Plan, done: int) -> bool:
    if case.eval_every is None:
        return False
    if case.eval_every == "epoch":
        return (plan.ends_epoch(done) or done == plan.total) and plan.epoch(done) >= case.eval_delay
    return (done % int(case.eval_every) == 0 or done == plan.total) and done >= case.eval_delay


def fed(ran: Ran) -> list[list[Row]]:
    """The batches that the run was fed, as rows with their weights, after checking that they are those of
    its data and settings: their number, sizes, labels and order."""
    case, plan, sources = ran.case, planned(ran), times(ran)
    known: dict[Fed, Row] = {}
    for row in (each for documents, _ in sources for each in documents):
        labels = tuple(i if w else IGNORED for i, w in zip(row.ids, row.weights, strict=True))
        assert known.setdefault((row.ids, labels), row) == row
    padding = (0,), (IGNORED,)
    found = [[known[row] for row in batch if row != padding] for batch in ran.batches]
    each = sum(plan.updates)
    epochs = [found[start : start + each] for start in range(0, len(found), each)]
    for number, epoch in enumerate(epochs):
        flat = [row for batch in epoch for row in batch]
        if case.streaming:
            assert {len(batch) for batch in epoch} == {case.size}
            if len(sources) == 1:
                rows = sources[0][0]
                for start in range(0, len(flat) - len(rows), len(rows)):
                    assert Counter(flat[start : start + len(rows)]) == Counter(rows)
            continue
        if not case.packing:
            sizes = [min(case.size, units(ran) - start) for start in range(0, units(ran), case.size)]
            assert [len(batch) for batch in epoch] == sizes[: len(epoch)]
        counted = Counter(flat)
        for rows, count in sources:
            assert all(counted[row] <= math.ceil(count / len(rows)) for row in rows)
            if len(epoch) == each and not case.drop_last:
                assert all(counted[row] >= count // len(rows) for row in rows)
                assert sum(counted[row] for row in rows) == count
        if len(sources) == 1 and not case.packing and not case.shuffle_dataset:
            order = _order(case, number, len(sources[0][0]))
            assert order is None or flat == [sources[0][0][at] for at in order[: len(flat)]]
    return found


def _order(case: Case, epoch: int, rows: int) -> list[int] | None:
    if case.sampling == "sequential":
        return list(range(rows))
    if case.sampling == "random":  # accelerate's sampler, which a seed makes reproducible
        chance = torch.Generator().manual_seed(case.seed + epoch)
        return list(map(int, torch.randperm(rows, generator=chance)))
    return None
