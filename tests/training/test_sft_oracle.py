"""sft learns and reports what its settings say, however they are combined: batches, losses, gradient norms,
learning rates, accuracies, tokens, evaluations, checkpoints and weights of whole runs equal those of a plain
loop over single rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from fmstune.report.ending import ending
from tests.support.end_to_end import journal_params, journal_points
from tests.support.sft_case import Case
from tests.support.sft_oracle import Settings, Training, full
from tests.support.sft_rows import KINDS
from tests.support.sft_run import Expected, Plan, Ran, documents, expected, fed, plain_model, planned, ran

pytestmark = pytest.mark.usefixtures("small_demo")


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def require_same(points: Any, stage: str, step: int, said: dict[str, float]) -> None:
    found = {name: points.get((stage, name, step)) for name in said}
    wrong = {name: (found[name], value) for name, value in said.items() if not _same(found[name], value)}
    assert not wrong, f"{stage}, step {step}: {wrong}"


def _same(found: float | None, said: float) -> bool:
    return found is not None and found == close(said)


def close(number: float) -> Any:
    return pytest.approx(number, rel=1e-3, abs=1e-4)


def compare(case: Case) -> None:
    """Run a case and compare everything it reports."""
    run = ran(case)
    batches = fed(run)
    found = expected(run, batches)
    points = journal_points(run.result.directory)
    compare_steps(case, planned(run), found, points)
    compare_evaluations(found, points)
    compare_weights(case, run, found)
    compare_summary(case, run, found)


def compare_steps(case: Case, plan: Plan, found: Expected, points: Any) -> None:
    done, begin, every = len(found.steps), 0, case.logging
    logged = sorted({step for stage, name, step in points if (stage, name) == ("train", "loss")})
    ends = {
        step
        for step in range(1, done + 1)
        if (plan.ends_epoch(step) if isinstance(every, str) else step % every == 0)
    }
    ends |= {done} | ({case.stop_at} if case.stop_at and case.stop_at < done else set())
    assert logged == sorted(ends)
    for end in logged:
        steps = found.steps[begin:end]
        tokens = sum(step.tokens for step in found.steps[:end])
        trained = sum(step.trained for step in steps)
        said = {
            "loss": sum(step.loss for step in steps) / len(steps),
            "grad_norm": steps[-1].grad_norm,
            "learning_rate": steps[-1].learning_rate,
            "mean_token_accuracy": sum(step.accuracy * step.trained for step in steps) / trained,
            "entropy": sum(step.entropy * step.trained for step in steps) / trained,
            "num_tokens": tokens,
        }
        require_same(points, "train", end, said)
        begin = end


def compare_evaluations(found: Expected, points: Any) -> None:
    steps = {step for stage, name, step in points if (stage, name) == ("eval", "loss")}
    assert steps == set(found.evaluations)
    for step, said in found.evaluations.items():
        require_same(points, "eval", step, said)


def compare_weights(case: Case, run: Ran, found: Expected) -> None:
    saved = load_file(next(run.result.directory.glob("*.safetensors")))
    for name, weight in found.weights.items():
        layer, _, part = name.rpartition(".")
        ours = saved[f"base_model.model.{layer}.lora_{part}.weight" if case.rank else name]
        initial = run.initial[f"base_model.model.{layer}.lora_{part}.default.weight" if case.rank else name]
        change = (weight - initial).detach()
        difference = float((ours - initial - change).norm())
        assert difference <= 0.01 * float(change.norm()) + 1e-6, name


def compare_summary(case: Case, run: Ran, found: Expected) -> None:
    end, done = ending(run.result.directory), len(found.steps)
    assert (end.status, end.step) == ("finished", done)
    if not case.streaming:
        recorded = journal_params(run.result.directory)
        given = recorded["decided"].get("max_steps", case.steps)
        assert given == found.total
        rows = [row for each in run.rows for row in documents(each, replace(case, packing=""))]
        if all(weight is None for _, weight in case.sources) and case.packing in ("", "bfd"):
            assert recorded["data"]["rows"] == len(rows)
            assert recorded["data"]["tokens"] == sum(len(row.ids) for row in rows)
            assert recorded["data"]["trained_tokens"] == sum(row.trained for row in rows)
    assert end.tokens == sum(step.tokens for step in found.steps)
    if found.evaluations:
        losses = {step: each["loss"] for step, each in found.evaluations.items()}
        assert end.evaluation is not None
        assert end.evaluation.first == close(next(iter(losses.values())))
        assert end.evaluation.lowest == close(min(losses.values()))


LOSSES = st.sampled_from(
    [{}, {}, {"loss_type": "dft"}, {"label_smoothing_factor": 0.2}],
)
SCHEDULES: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {"lr_scheduler_type": "constant"},
        {"lr_scheduler_type": "constant_with_warmup"},
        {"lr_scheduler_type": "linear"},
        {"lr_scheduler_type": "cosine"},
        {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0, "lr_end": 1e-3}},
        {"lr_scheduler_type": "inverse_sqrt"},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.2}},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}},
    ]
)
OPTIMIZERS: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {"optim": "sgd", "learning_rate": 0.2},
        {"optim": "sgd", "learning_rate": 0.05, "momentum": 0.8},
        {"optim": "adamw_torch", "learning_rate": 2e-3, "adam_epsilon": 1e-3},
        {"optim": "adamw_torch", "learning_rate": 2e-3, "adam_epsilon": 1e-3, "adam_beta1": 0.5},
    ]
)
NEUTRAL = st.lists(
    st.sampled_from(
        [
            "training.padding_free=true", "training.padding_free=false", "training.pad_to_multiple_of=8",
            "training.activation_checkpointing=true", "training.torch_empty_cache_steps=1",
            "training.average_tokens_across_devices=false", "model.attn_implementation=eager",
            "training.logging_nan_inf_filter=true",
        ]
    ),
    max_size=2,
    unique_by=lambda each: each.partition("=")[0],
)  # fmt: skip


@st.composite
def numbers(draw: Any, /) -> Settings:
    warmup = draw(st.sampled_from([0, 0, 2, 0.3]))
    return Settings(
        **draw(OPTIMIZERS),
        **draw(SCHEDULES),
        **draw(LOSSES),
        warmup_steps=warmup,
        weight_decay=draw(st.sampled_from([0.0, 0.1])),
        max_grad_norm=draw(st.sampled_from([0, 0.3, 1.0, 100.0])),
    )


@st.composite
def cases(draw: Any, /, **fixed: Any) -> Case:
    """Cases of a single source that is not packed, but for what is `fixed`."""
    of = draw(numbers())
    plain = of.loss_type == "nll" and not of.label_smoothing_factor
    limit = draw(st.none() | st.integers(8, 16))
    drawn: dict[str, Any] = {
        "kind": draw(st.sampled_from(KINDS)),
        "sources": ((draw(st.integers(4, 8)), None),),
        "seed": draw(st.integers(0, 99)),
        "weighted": plain and draw(st.booleans()),
        "all_tokens": draw(st.booleans()),
        "max_length": limit,
        "keep_end": limit is not None and draw(st.booleans()),
        "sampling": draw(st.sampled_from(["random", "random", "sequential", "group_by_length"])),
        "shuffle_dataset": draw(st.booleans()),
        "size": draw(st.integers(1, 3)),
        "several": draw(st.integers(1, 3)),
        "drop_last": draw(st.booleans()),
        "epochs": draw(st.none() | st.sampled_from([1, 1.5, 2])),
        "steps": draw(st.integers(2, 6)),
        "logging": draw(st.sampled_from([1, 2, 3, "epoch"])),
        "numbers": of,
        "more": tuple(draw(NEUTRAL)),
    }
    case = Case(**drawn | fixed)
    assume(case.epochs or case.numbers.lr_scheduler_type != "warmup_stable_decay" or case.steps >= 4)
    return case


FEW = settings(
    max_examples=2, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)


_PADDED = ("training.padding_free=true", "training.pad_to_multiple_of=8")
FOUND = {
    "tokens that fill up a batch are not counted": Case(more=_PADDED),
    "packed rows decide the steps": Case(packing="bfd_split", max_length=8),
    "a dropped batch is not a step": Case(drop_last=True),
    "a log after an evaluation is complete": Case(epochs=2, logging="epoch", eval_every=1),
    "an interrupted run logs its last steps": Case(epochs=3, logging=4, stop_at=2),
    "an interrupted run does not evaluate": Case(epochs=2, eval_every="epoch", best="loss", stop_at=2),
    "a run that stops early logs its last steps": Case(
        epochs=9, logging=4, eval_every=1, best="loss", patience=1, numbers=Settings(learning_rate=9)
    ),
    "a resumed run is not evaluated again at its start": Case(
        epochs=9,
        eval_every=1,
        eval_on_start=True,
        best="loss",
        patience=2,
        stop_at=2,
        numbers=Settings(learning_rate=4),
    ),
    "rows grouped by length are each learnt once in a resumed epoch": Case(
        sources=((24, None),), epochs=2, sampling="group_by_length", stop_at=15
    ),
    "sources of a stream": Case(kind="chat", streaming=True, epochs=None, sources=((4, 1), (3, 2))),
}


@pytest.mark.parametrize("what", FOUND)
def test_what_was_wrong(what: str) -> None:
    compare(FOUND[what])


@FEW
@given(case=cases())
def test_settings_in_any_combination(case: Case) -> None:
    compare(case)


@FEW
@given(case=cases(), data=st.data())
def test_evaluations_and_the_best_of_them(case: Case, data: Any) -> None:
    every = data.draw(st.sampled_from([1, 2, "epoch"]))
    start, delay = data.draw(st.booleans()), data.draw(st.sampled_from([0, 0, 1]))
    best = data.draw(st.sampled_from(["", "loss", "mean_token_accuracy"]))
    patience = data.draw(st.sampled_from([None, 1, 2])) if best == "loss" else None
    size = f"training.per_device_eval_batch_size={data.draw(st.integers(1, 4))}"
    case = replace(case, eval_every=every, eval_on_start=start, eval_delay=delay, best=best)
    compare(replace(case, patience=patience, more=(*case.more, size)))


@FEW
@given(case=cases(packing=""), strategy=st.sampled_from(["bfd", "bfd_split", "wrapped"]), data=st.data())
def test_packed_rows(case: Case, strategy: str, data: Any) -> None:
    most, evaluates = data.draw(st.integers(10, 30)), data.draw(st.sampled_from([None, "epoch"]))
    more = tuple(each for each in case.more if "padding_free" not in each)
    case = replace(case, packing=strategy, max_length=most, keep_end=False, eval_every=evaluates, more=more)
    shuffles = case.shuffle_dataset and strategy != "wrapped"
    compare(replace(case, sampling="random", shuffle_dataset=shuffles))


@FEW
@given(case=cases(epochs=None, drop_last=False, sampling="random", shuffle_dataset=False), data=st.data())
def test_streamed_rows(case: Case, data: Any) -> None:
    sources = data.draw(st.sampled_from([((5, None),), ((3, None), (2, None)), ((5, 1), (3, 2))]))
    compare(replace(case, streaming=True, sources=sources))


@settings(FEW, max_examples=1)
@given(case=cases(), sources=st.sampled_from([((4, 1), (3, 2)), ((2, 3), (6, 1)), ((3, None), (2, None))]))
def test_mixtures(case: Case, sources: Any) -> None:
    compare(replace(case, sources=sources))


@settings(FEW, max_examples=1)
@given(case=cases(), rank=st.integers(1, 8), rslora=st.booleans())
def test_adapters(case: Case, rank: int, rslora: bool) -> None:
    compare(replace(case, rank=rank, rslora=rslora))


@FEW
@given(case=cases(), data=st.data())
def test_resumed_runs(case: Case, data: Any) -> None:
    how = data.draw(st.sampled_from(["rows", "packed", "streamed", "mixed", "adapter"]))
    if how == "packed":
        case = replace(case, packing="bfd", max_length=24, keep_end=False)
    elif how == "streamed":
        case = replace(case, streaming=True, epochs=None, drop_last=False)
    elif how == "mixed":
        case = replace(case, sources=((4, 1), (3, 2)))
    elif how == "adapter":
        case = replace(case, rank=4)
    every = data.draw(st.sampled_from([None, 1, 2, "epoch"]))
    best, start = (
        (data.draw(st.sampled_from(["", "loss"])), data.draw(st.booleans())) if every else ("", False)
    )
    patience = data.draw(st.sampled_from([None, 1, 2])) if best else None
    case = replace(case, eval_every=every, eval_on_start=start, best=best, patience=patience)
    compare(replace(case, stop_at=data.draw(st.integers(1, 3))))


@settings(FEW, max_examples=1)
@given(case=cases(), alpha=st.sampled_from([5.0, 20.0]))
def test_evaluations_are_without_noise(case: Case, alpha: float) -> None:
    run = ran(replace(case, noise=alpha, eval_every=1, eval_on_start=True))
    plan, points = planned(run), journal_points(run.result.directory)
    rows = documents(run.evaluated, case)
    for step, weights in (
        (0, run.initial),
        (plan.total, load_file(run.result.directory / "model.safetensors")),
    ):
        model = plain_model(weights)
        said = Training(model, full(model), case.numbers).evaluate(rows)
        require_same(points, "eval", step, said)
