"""Each kind of adapter is trained, saved, loaded by plain PEFT, trained further, and merged."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from fmstune import demo
from fmstune.config.load.load import load
from fmstune.config.schema.tables import ModelConfig
from fmstune.errors import ConfigError, ModelError
from fmstune.launch.notices import warnings_shown
from fmstune.models.adapter_weights import require_reloadable
from fmstune.models.load import load_model
from fmstune.models.locate import locate
from fmstune.models.merge import check, merge
from tests.support.architectures import save_tiny
from tests.support.models import logits
from tests.support.short_runs import train

pytestmark = pytest.mark.usefixtures("small_demo")

KINDS = {
    "lora": ("lora.enabled=true", "lora.r=4"),
    "rslora": ("lora.enabled=true", "lora.r=4", "lora.rslora=true"),
    "dora": ("lora.enabled=true", "lora.r=4", "lora.dora=true"),
    "whole modules": ("lora.enabled=true", "lora.r=4", 'lora.modules_to_save=["embed_tokens"]'),
    "prompt tuning": (
        "prompt_tuning.enabled=true",
        "prompt_tuning.tokens=5",
        "prompt_tuning.text=the price is",
    ),
}
SAID = {
    "lora": "LoRA r=4 on down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
    "rslora": "rsLoRA r=4 on",
    "dora": "DoRA r=4 on",
    "whole modules": "and all of embed_tokens",
    "prompt tuning": "prompt tuning, 5 tokens before each text, initialised as 'the price is'",
}


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def trained(kind: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with each kind of adapter, on a demo model with another seed than usual; and its console
    output."""
    out = tmp_path_factory.mktemp(kind.replace(" ", "-")) / "run"
    return out, train(out, *KINDS[kind], "training.seed=5")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a LoRA adapter."""
    out = tmp_path_factory.mktemp("plain") / "run"
    train(out, *KINDS["lora"], "training.seed=5")
    return out


def with_peft(directory: Path, seed: int = 5) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(demo.build_model(seed), str(directory)))


def test_it_is_trained_and_plain_peft_loads_its_weights(kind: str, trained: tuple[Path, str]) -> None:
    out, shown = trained
    assert SAID[kind] in shown
    assert "% trained" in shown
    assert not (out / "model.safetensors").exists()
    untouched = logits(demo.build_model(5))
    learnt = with_peft(out)[:, -untouched.shape[1] :]
    assert (learnt - untouched).abs().max() > 1e-3
    ours = load_model(ModelConfig(path=str(out)), lora=True, seed=0, trainable=False)
    assert torch.equal(logits(ours.model), with_peft(out))
    assert ours.identity["base"] == "demo:5"


def test_whether_its_weights_would_load_again_is_checked_without_a_request_to_the_hub() -> None:
    model = demo.build_model(5)
    model.name_or_path = "owner/name"
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns if it cannot reach the hub
        require_reloadable(adapted)


def test_merged_it_is_a_plain_model_with_the_same_logits(
    kind: str, trained: tuple[Path, str], tmp_path: Path
) -> None:
    out, _ = trained
    if kind == "prompt tuning":
        with pytest.raises(ModelError, match="no weights to merge"):
            check(locate(str(out)), tmp_path / "merged")
        return
    done = merge(locate(str(out)), tmp_path / "merged", dtype="auto", base=None, trust_remote_code=False)
    assert (done.base, done.dtype) == ("demo:5", "float32")
    merged, report = AutoModelForCausalLM.from_pretrained("merged", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.allclose(logits(merged), with_peft(out), atol=1e-4)
    assert merged.config.tie_word_embeddings
    assert AutoTokenizer.from_pretrained("merged").chat_template
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert "demo:5" not in Path("merged/config.json").read_text()


def test_a_run_can_start_from_it_with_its_settings(kind: str, trained: tuple[Path, str]) -> None:
    out, _ = trained
    shown = train(Path("second"), "training.learning_rate=1e-9", "training.seed=8", model=str(out))
    assert SAID[kind].partition(", begun")[0] in shown
    assert torch.allclose(with_peft(Path("second")), with_peft(out), atol=1e-4)
    assert json.loads(Path("second/adapter_config.json").read_text())["base_model_name_or_path"] == "demo:5"
    train(Path("third"), model=str(out))
    assert (with_peft(Path("third")) - with_peft(out)).abs().max() > 1e-3
    again = load(Path("second/config.toml"))
    assert again.adapter == ("prompt tuning" if kind == "prompt tuning" else "lora")
    assert again.lora.r == (16 if kind == "prompt tuning" else 4)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    kind: str, trained: tuple[Path, str]
) -> None:
    if kind == "rslora":
        return  # it is resumed like LoRA
    out, _ = trained
    steps = ("training.save_strategy=steps", "training.save_steps=2", "training.seed=5")
    train(Path("first"), *KINDS[kind], *steps)
    shutil.copytree("first/checkpoint-2", "parts/checkpoint-2")
    train(Path("second"), *KINDS[kind], *steps, resume="parts/checkpoint-2")
    assert torch.equal(with_peft(Path("second")), with_peft(out))


def test_settings_that_differ_from_those_of_the_adapter_are_reported(plain: Path) -> None:
    shutil.copytree(plain, "run")
    for sets, message in (
        (["lora.r=8"], r"--set: lora.r = 8, but the adapter in run has 4; leave it out"),
        (["lora.rslora=true"], "lora.rslora = true, but the adapter in run has false"),
        (["lora.enabled=false"], "is an adapter, but lora.enabled is false. .* fmstune merge run OUT"),
        (["prompt_tuning.enabled=true"], "exclude each other.*leave both out, or merge a LoRA adapter first"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(None, [("model.path", "run", "--model"), ("data.train", "demo", "--data")], sets)
    config = load(None, [("model.path", "run", "--model"), ("data.train", "demo", "--data")], ["lora.r=4"])
    assert (config.lora.enabled, config.training["learning_rate"]) == (True, 2e-4)
    assert config.origins["lora.alpha"] == "run/adapter_config.json"


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            ["lora.target_modules=qproj"],
            r"no module 'qproj'. Did you mean q_proj\? There are down_proj, embed_",
        ),
        (['lora.target_modules=["q_proj", "nothing"]'], "no module 'nothing'. There are"),
        (
            ["lora.target_modules=q_proj.*"],
            "matches none of the model's full module names, .* model.embed_tokens",
        ),
        (["lora.target_modules=(q"], "is not a regular expression: "),
        (["lora.target_modules=[]"], "lora.target_modules is empty"),
        (['lora.target_modules=["norm"]'], "no module 'norm'"),
        (["lora.target_modules=.*_head"], "put lm_head into lora.modules_to_save"),
        (
            ["lora.target_modules=lm_head"],
            "contains lm_head, on which .*; put lm_head into lora.modules_to_save",
        ),
        (
            ['lora.target_modules=["q_proj", "embed_tokens"]'],
            "contains embed_tokens, which share their weights",
        ),
        (["lora.target_modules=q_proj,embed_tokens"], "put embed_tokens into lora.modules_to_save"),
        (["lora.target_modules=.*(q_proj|embed_tokens)"], "contains embed_tokens, which share"),
        (['lora.modules_to_save=["head"]'], r"--set: lora.modules_to_save: the model has no module 'head'"),
    ],
)
def test_modules_that_the_model_does_not_have_are_reported_with_those_it_has(
    sets: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(Path("out"), "lora.enabled=true", *sets)


@pytest.mark.parametrize("targets", ["q_proj,v_proj", '["q_proj", "v_proj"]', ".*[qv]_proj"])
def test_modules_are_a_comma_separated_list_or_a_regular_expression(targets: str) -> None:
    assert "LoRA r=16 on q_proj, v_proj\n" in train(
        Path("out"), "lora.enabled=true", f"lora.target_modules={targets}"
    )


def test_the_base_model_is_found_from_below_the_directory_its_path_is_relative_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "models" / "base"
    shutil.copytree(demo.model_dir(), base)
    demo.build_model(3).save_pretrained(base)
    train(Path("runs/a"), *KINDS["lora"], model="models/base")
    assert (
        json.loads(Path("runs/a/adapter_config.json").read_text())["base_model_name_or_path"]
        == "./models/base"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = tmp_path / "runs" / "a"
    options: dict[str, Any] = {"dtype": "bfloat16", "trust_remote_code": False}
    done = merge(locate(str(run)), Path("merged"), base=None, **options)
    assert done.base == str(base)
    assert AutoModelForCausalLM.from_pretrained("merged", dtype="auto").dtype == torch.bfloat16
    base.rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=r"was made for the model './models/base', which no longer exists"):
        merge(locate(str(run)), Path("again"), base=None, **options)
    merge(locate(str(run)), Path("again"), base=str(tmp_path / "moved"), **options)


def test_a_merge_that_is_impossible_or_cannot_be_written_is_refused_and_leaves_nothing(
    plain: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(demo.model_dir(), whole)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match="whole is a whole model, not an adapter: there is nothing to merge"):
        check(locate("whole"), Path("out"))
    with pytest.raises(ConfigError, match="full is not empty, and nothing is overwritten"):
        check(locate(str(plain)), Path("full"))
    with pytest.raises(ConfigError, match="is a file"):
        check(locate(str(plain)), Path("full/notes.txt"))
    with pytest.raises(ModelError, match="full holds no model, no adapter and no checkpoint"):
        locate("full")
    with pytest.raises(ModelError, match="nowhere/at/all: there is no such directory"):
        locate("nowhere/at/all")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "whole"]


def test_for_an_unfinished_run_the_newest_checkpoint_is_merged(plain: Path) -> None:
    shutil.copytree(plain, "run")
    for file in Path("run").glob("adapter*"):
        file.unlink()
    place = locate("run")
    assert (place.path, place.checkpoint) == ("run/checkpoint-3", True)
    merge(place, Path("merged"), dtype="auto", base=None, trust_remote_code=False)
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained("merged")), with_peft(plain), atol=1e-4)


def test_a_damaged_adapter_is_reported(plain: Path) -> None:
    shutil.copytree(plain, "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    Path("run/adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="the adapter in 'run' cannot be loaded"):
        load_model(ModelConfig(path="run"), lora=True, seed=0)
    Path("run/adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"run/adapter_config.json cannot be read"):
        locate("run")
    Path("run/adapter_config.json").write_text("[]")
    with pytest.raises(ConfigError, match="is not the configuration of an adapter"):
        load(None, [("model.path", "run", "--model"), ("data.train", "demo", "--data")])


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["lora.enabled=true"], "exclude each other"),
        (["training.packing=true"], "training.packing joins several rows"),
        (["prompt_tuning.text="], "prompt_tuning.text is empty"),
    ],
)
def test_settings_incompatible_with_prompt_tuning_are_refused(sets: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(None, (), ["prompt_tuning.enabled=true", *sets])


def test_virtual_tokens_have_the_width_of_the_embeddings_and_need_attention() -> None:
    save_tiny("opt", Path("narrow"), hidden_size=32, word_embed_proj_dim=16)
    train(Path("tuned"), "prompt_tuning.enabled=true", "training.max_steps=1", model="narrow")
    (prompt,) = load_file("tuned/adapter_model.safetensors").values()
    assert prompt.shape == (20, 16)
    save_tiny("mamba", Path("mamba"))
    with pytest.raises(ConfigError, match=r"mamba has no attention.*; use --lora"):
        train(Path("no"), "prompt_tuning.enabled=true", model="mamba")


@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_adapters_of_other_methods_can_be_trained_further_and_merged(method: str) -> None:
    rows = [
        {"prompt": f"What is {n} and {n}?", "chosen": f"It is {2 * n}.", "rejected": "No."} for n in range(8)
    ]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sets = (f"run.method={method}", "data.train=pairs.jsonl", "training.max_steps=2")
    train(Path("first"), *sets, "lora.enabled=true", "training.seed=5")
    shown = train(Path("second"), *sets, model="first")
    assert "LoRA r=16 on" in shown
    merge(locate("second"), Path("merged"), dtype="auto", base=None, trust_remote_code=False)
    kind = AutoModelForSequenceClassification if method == "reward" else AutoModelForCausalLM
    merged, report = kind.from_pretrained("merged", output_loading_info=True)
    assert not report["missing_keys"]
    reward = method == "reward"
    ours = load_model(ModelConfig(path="second"), lora=True, seed=0, reward=reward, trainable=False).model
    assert torch.allclose(logits(merged), logits(ours), atol=1e-4)
    assert (locate("second").is_reward_model, locate("merged").is_reward_model) == (reward, reward)
    with pytest.raises(ModelError, match=r"is of a (reward|language) model"):
        load_model(ModelConfig(path="second"), lora=True, seed=0, reward=not reward)


@pytest.mark.parametrize(
    ("architecture", "embeddings", "head"),
    [
        ("gpt2", "wte", "lm_head"),
        ("bloom", "word_embeddings", "lm_head"),
        ("biogpt", "embed_tokens", "output_projection"),
    ],
)
def test_embeddings_that_are_trained_whole_stay_tied_to_the_head_under_any_name(
    architecture: str, embeddings: str, head: str
) -> None:
    save_tiny(architecture, Path("base"), tie_word_embeddings=True)
    sets = ("lora.enabled=true", f'lora.modules_to_save=["{embeddings}"]')
    train(Path("run"), *sets, model="base")
    train(Path("more"), model="run")
    train(Path("other"), sets[0], f'lora.modules_to_save=["{head}"]', model="base")
    before = AutoModelForCausalLM.from_pretrained("base").get_input_embeddings().weight
    for name in ("run", "more", "other"):
        merge(locate(name), Path(f"{name}-merged"), dtype="auto", base=None, trust_remote_code=False)
        merged = AutoModelForCausalLM.from_pretrained(f"{name}-merged")
        learnt = merged.get_input_embeddings().weight
        assert merged.get_output_embeddings().weight is learnt
        assert not torch.allclose(learnt, before, atol=1e-3)
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), name)
        torch.testing.assert_close(logits(adapted), logits(merged), atol=1e-5, rtol=1e-5)


def test_tied_embeddings_are_not_trained_whole_at_the_cost_of_the_bias_of_the_head() -> None:
    save_tiny("phi", Path("base"), tie_word_embeddings=True)
    for named in ("embed_tokens", "lm_head"):
        with pytest.raises(ConfigError, match=f"would drop the bias of this model's head.*leave {named} out"):
            train(Path(named), "lora.enabled=true", f'lora.modules_to_save=["{named}"]', model="base")
    save_tiny("phi", Path("untied"), tie_word_embeddings=False)
    train(Path("run"), "lora.enabled=true", 'lora.modules_to_save=["lm_head"]', model="untied")


@pytest.mark.parametrize(("architecture", "tied"), [("gpt2", True), ("llama", False)])
def test_what_peft_says_about_its_own_settings_is_not_shown(architecture: str, tied: bool) -> None:
    save_tiny(architecture, Path("base"), tie_word_embeddings=tied)
    whole = '["wte"]' if tied else '["embed_tokens","lm_head"]'
    shown: list[str] = []
    with warnings.catch_warnings(), warnings_shown(shown.append):
        warnings.simplefilter("always")
        train(Path("run"), "lora.enabled=true", f"lora.modules_to_save={whole}", model="base")
    assert not [each for each in shown if "fan_in" in each or "ensure_weight_tying" in each]
