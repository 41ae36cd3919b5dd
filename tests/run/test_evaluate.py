"""`fmstune evaluate` computes what a run tracks at an evaluation, and leaves nothing behind."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fmstune.cli.main import main
from fmstune.cli.terminal import screen
from fmstune.console import RunConsole
from fmstune.errors import ModelError
from fmstune.models.locate import locate
from fmstune.run.evaluate import evaluate, evaluation_of
from tests.support.architectures import save_tiny
from tests.support.end_to_end import journal_points
from tests.support.preferred import pairs, write
from tests.support.tracked import rewrite_as_interrupted
from tests.support.tuned import tune

pytestmark = pytest.mark.usefixtures("small_demo")
SHORT = (
    "model.path=demo",
    "training.max_steps=3",
    "training.learning_rate=0.01",
    "training.per_device_train_batch_size=4",
)


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = pairs(16)
    write("pairs.jsonl", rows[:10])
    write("held.jsonl", rows[10:])
    for name, part in (("chats.jsonl", rows[:10]), ("more.jsonl", rows[10:])):
        write(name, [{"messages": [*row["prompt"], *row["chosen"]]} for row in part])


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as end:
        main(["evaluate", *arguments, "--json"])
    shown = capsys.readouterr()
    assert end.value.code in (0, None), shown.err
    assert sorted(Path().rglob("*")) == before
    found: dict[str, Any] = json.loads(shown.out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["evaluate", *arguments])
    assert end.value.code == 2
    return capsys.readouterr().err


def last(run: str) -> dict[str, Any]:
    """The metrics of a run's last evaluation, from its journal."""
    return {name: value for (stage, name, _), value in journal_points(Path(run)).items() if stage == "eval"}


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "reward", "orpo"])
@pytest.mark.parametrize("adapter", ["false", "true"])
def test_a_run_has_the_metrics_of_its_last_evaluation(
    method: str, adapter: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train, held = ("chats.jsonl", "more.jsonl") if method == "sft" else ("pairs.jsonl", "held.jsonl")
    data = (f"data.train={train}", f"data.eval={held}", f"run.method={method}", f"lora.enabled={adapter}")
    tune("run", *SHORT, *data)
    expected = last("run")
    batches = () if method == "kto" else (("--batch-size", "3"),)  # it compares the rows of a batch
    for arguments in ((), ("--data", held), *batches):
        found = evaluated(capsys, "run", *arguments)
        both = found.keys() & expected.keys()
        assert len(both) >= 2
        for name in both - {"loss_batch_mean"}:  # which depends on the batches
            assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


def test_a_plain_model_has_the_loss_of_its_own_forward(capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny("llama", Path("model"))
    texts = ["The lamp costs seven euros.", "Is it red?", "So it is, they say."]
    Path("texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = evaluated(capsys, "model", "--data", "texts.jsonl")
    model, tokenizer = AutoModelForCausalLM.from_pretrained("model"), AutoTokenizer.from_pretrained("model")
    total = tokens = 0.0
    for text in texts:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    assert found["loss"] == pytest.approx(total / tokens, rel=1e-4)
    assert found["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-3)


def test_an_unfinished_run_is_evaluated_with_its_newest_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tune("run", *SHORT, "data.train=chats.jsonl", "data.eval=more.jsonl", "training.save_steps=3")
    expected = last("run")
    rewrite_as_interrupted(Path("run"))
    for file in Path("run").glob("*.safetensors"):
        file.unlink()
    assert evaluated(capsys, "run")["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert evaluated(capsys, "run/checkpoint-3")["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_what_cannot_be_evaluated_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no evaluation data; add --data FILE" in refused(capsys, "demo")
    assert "--data: data.train = 'nowhere.jsonl': there is no such file" in refused(
        capsys, "demo", "--data", "nowhere.jsonl"
    )
    said = refused(capsys, "demo", "--data", "held.jsonl", "--method", "dpo")
    assert "compares a model with the one before the training" in said
    tune("run", *SHORT, "data.train=chats.jsonl")
    shutil.rmtree("run/tracking")
    assert "there is no evaluation data" in refused(capsys, "run")


def test_the_training_data_are_neither_read_nor_spoken_of(capsys: pytest.CaptureFixture[str]) -> None:
    long = {"messages": [{"role": "user", "content": "far " * 400}, {"role": "assistant", "content": "No."}]}
    Path("bad.jsonl").write_text(Path("chats.jsonl").read_text() + "{oops\n")
    rows = [long, *map(json.loads, Path("more.jsonl").read_text().splitlines())]
    write("cut.jsonl", rows)
    held = ("data.eval=cut.jsonl", "data.skip_bad_rows=true", "training.max_length=200")
    tune("run", *SHORT, "data.train=bad.jsonl", *held, "training.warmup_steps=2")
    expected = last("run")
    Path("bad.jsonl").write_text("{}\n")
    for data in ((), ("--data", "cut.jsonl")):
        with pytest.raises(SystemExit):
            main(["evaluate", "run", *data, "--json"])
        shown = capsys.readouterr()
        assert json.loads(shown.out)["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert "data     cut.jsonl · 6 rows (messages) (1 cut, 1 left out: too long" in shown.err
        assert "bad.jsonl" not in shown.err
        assert "learn" not in shown.err


def test_another_base_model_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    data = ("data.train=chats.jsonl", "data.eval=more.jsonl", "lora.enabled=true")
    save_tiny("llama", Path("model"))
    tune("run", *SHORT, *data, "model.path=model")
    model = AutoModelForCausalLM.from_pretrained("model")
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    model.save_pretrained("model")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["evaluate", "run"])
    assert (
        "the weights of model are not those that the adapter in run was trained on" in capsys.readouterr().err
    )


def test_no_model_is_evaluated_with_a_random_head(capsys: pytest.CaptureFixture[str]) -> None:
    tune("scores", *SHORT, "run.method=reward", "data.train=pairs.jsonl", "lora.enabled=true")
    assert "demo is a language model" in refused(capsys, "demo", "--data", "held.jsonl", "--method", "reward")
    assert "scores is a reward model" in refused(capsys, "scores", "--data", "more.jsonl", "--method", "sft")


def test_code_and_division_of_the_training_are_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path.cwd()))
    Path("own_code.py").write_text(
        "from transformers import TrainerCallback\n"
        "class Own(TrainerCallback):\n"
        "    def on_evaluate(self, *_, metrics, **__):\n"
        "        metrics['eval_own'] = 1.0\n"
        "def score(prediction):\n"
        "    return {'undefined': float('nan')}\n"
    )
    own = ('run.callbacks=["own_code:Own"]', "run.compute_metrics=own_code:score")
    best = ("training.load_best_model_at_end=true", "training.metric_for_best_model=own")
    tune("run", *SHORT, "data.train=chats.jsonl", "data.eval=more.jsonl", *own, *best)
    config = Path("run/config.toml")
    config.write_text(
        config.read_text().replace("[training]\n", "[training]\nfsdp = true\nfsdp_config = {version = 2}\n")
    )
    found = evaluated(capsys, "run")
    assert found["undefined"] == "NaN"
    assert found["loss"] == pytest.approx(last("run")["loss"], rel=1e-5)
    assert "own" not in found


def test_only_a_likelihood_has_a_perplexity(capsys: pytest.CaptureFixture[str]) -> None:
    data = ("data.train=chats.jsonl", "data.eval=more.jsonl")
    tune("run", *SHORT, *data, "training.loss_type=dft")
    assert "perplexity" not in evaluated(capsys, "run")
    assert "perplexity" in evaluated(capsys, "run", "--set", "training.loss_type=nll")


def test_another_method_leaves_out_what_only_the_method_of_the_run_has(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = ("data.train=pairs.jsonl", "data.eval=held.jsonl", "run.method=dpo")
    tune("run", *SHORT, *data, 'training.loss_type=["ipo"]', "training.beta=0.3")
    capsys.readouterr()
    found = evaluated(capsys, "run", "--data", "more.jsonl", "--method", "sft")
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert evaluated(capsys, "run")["loss"] == pytest.approx(last("run")["loss"], rel=1e-4)


def test_other_settings_than_those_of_the_adapter_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    tune("run", *SHORT, "data.train=chats.jsonl", "data.eval=more.jsonl", "lora.enabled=true")
    for setting, value in (("lora.enabled=false", "true"), ("lora.r=8", "16"), ("lora.alpha=1", "32")):
        said = refused(capsys, "run", "--set", setting)
        assert f"--set: {setting.partition('=')[0]} = " in said
        assert f"but the adapter in run has {value}: leave it as the run has it." in said


def test_fewer_rows_than_a_batch_of_the_training_are_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    whole = ("training.dataloader_drop_last=true", "training.per_device_train_batch_size=4")
    tune("run", *SHORT, "data.train=chats.jsonl", "data.eval=more.jsonl", *whole)
    Path("one.jsonl").write_text(Path("more.jsonl").read_text().splitlines()[0] + "\n")
    assert evaluated(capsys, "run", "--data", "one.jsonl")["loss"] > 0


def test_a_checkpoint_that_the_run_removes_meanwhile_is_not_looked_for_on_the_hub(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tune("run", *SHORT, "data.train=chats.jsonl", "data.eval=more.jsonl", "training.save_steps=3")
    rewrite_as_interrupted(Path("run"))
    for file in Path("run").glob("*.safetensors"):
        file.unlink()
    evaluation = evaluation_of("run", locate("run"), (), {}, [])
    Path("run/checkpoint-3").rename("run/checkpoint-4")
    with pytest.raises(ModelError, match="there is no such directory"):
        evaluate(evaluation, RunConsole(screen()))


@pytest.mark.parametrize(
    "added",
    [
        '[model]\nadd_tokens = ["lamp"]\n',
        "[prompt_tuning]\nenabled = true\ntokens = 5\n",
        "[lora]\nenabled = true\nr = 4\n",
        '[model]\nrevision = "v2"\n',
    ],
)
def test_what_a_training_adds_to_its_model_is_not_added_to_another(
    added: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny("llama", Path("model"))
    expected = evaluated(capsys, "model", "--data", "more.jsonl")
    Path("fmstune.toml").write_text(f'{added}[data]\ntrain = ["chats.jsonl"]\neval = ["more.jsonl"]\n')
    assert evaluated(capsys, "model") == pytest.approx(expected)
