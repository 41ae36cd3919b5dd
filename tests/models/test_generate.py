"""Any model generates text, without side effects on the model and its training."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoTokenizer

from fmstune import demo
from fmstune.cli.main import main
from fmstune.errors import ModelError
from fmstune.models.generate import Prompt, _settings, generate_texts, rendered, require_room
from tests.support.architectures import tiny_model
from tests.support.short_runs import train

PROMPTS = ["What does the lamp cost?", "Hello", "Tell me of the garden, the river and the hill behind it."]


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo.model_dir())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run that trained all weights, and one that trained an adapter."""
    directory = tmp_path_factory.mktemp("runs")
    train(directory / "full", "training.max_steps=30")
    train(directory / "lora", "lora.enabled=true", "training.max_steps=30")
    return directory


def model(kind: str) -> Any:
    made = demo.build_model(4)
    torch.manual_seed(1)
    if kind == "lora":
        made = get_peft_model(made, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, weights in made.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weights, std=0.1)
    elif kind == "prompt tuning":
        made = get_peft_model(made, PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))
    return made


@pytest.mark.parametrize("kind", ["full", "lora", "prompt tuning"])
@pytest.mark.parametrize("raw", [False, True])
def test_prompts_of_different_lengths_are_answered_in_a_batch_as_each_alone(
    kind: str, raw: bool, tokenizer: Any
) -> None:
    writer = model(kind)
    prompts = PROMPTS if raw else [rendered(tokenizer, prompt).text for prompt in PROMPTS]
    together = generate_texts(writer, tokenizer, prompts, 12, special=raw)
    assert together == [generate_texts(writer, tokenizer, [text], 12, special=raw)[0] for text in prompts]
    assert len(set(together)) > 1
    assert all(together)


@pytest.mark.parametrize(
    "published",
    [
        {"num_return_sequences": 2, "do_sample": True},
        {"return_dict_in_generate": True, "output_scores": True},
        {"stop_strings": ["never said"]},
        {"num_beams": 3, "early_stopping": True},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"dola_layers": "low"},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=str,
)
def test_published_settings_for_other_uses_change_no_answer(
    published: dict[str, Any], tokenizer: Any
) -> None:
    writer = model("lora")
    expected = generate_texts(writer, tokenizer, PROMPTS, 8)
    for name, value in published.items():
        setattr(writer.generation_config, name, value)
    assert generate_texts(writer, tokenizer, PROMPTS, 8) == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_modes_and_random_states_are_restored(temperature: float, tokenizer: Any) -> None:
    writer = model("lora").train()
    frozen = writer.base_model.model.model.norm
    frozen.eval()
    writer.config.use_cache = False
    state, settings = torch.random.get_rng_state(), writer.generation_config.to_dict()
    generate_texts(writer, tokenizer, PROMPTS, 4, temperature=temperature, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert writer.training
    assert not frozen.training
    assert writer.generation_config.to_dict() == settings
    assert tokenizer.padding_side == AutoTokenizer.from_pretrained(demo.model_dir()).padding_side
    assert all(weights.grad is None for weights in writer.parameters())


def test_sampled_tokens_depend_on_the_seed_and_greedy_ones_do_not(tokenizer: Any) -> None:
    writer = model("full")
    drawn = [generate_texts(writer, tokenizer, PROMPTS, 9, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    writer.generation_config.do_sample, writer.generation_config.temperature = True, 3.0
    greedy = generate_texts(writer, tokenizer, PROMPTS, 9)
    assert greedy == generate_texts(model("full"), tokenizer, PROMPTS, 9)


def test_an_answer_ends_at_the_end_token_of_the_template(tokenizer: Any) -> None:
    writer = model("full")
    tokenizer.eos_token = "<|endoftext|>"  # a base model's, which never ends a turn
    writer.generation_config.eos_token_id = 0
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert generate_texts(writer, tokenizer, ["Hello"], 12) != [""]
    hook = writer.lm_head.register_forward_hook(
        lambda module, args, out: out.index_fill(-1, torch.tensor([end]), 1e9)
    )
    assert generate_texts(writer, tokenizer, ["Hello"], 12) == [""]
    hook.remove()
    assert _settings(writer, tokenizer, special=False, temperature=0).eos_token_id == [0, end]
    assert _settings(writer, tokenizer, special=True, temperature=0).eos_token_id == [0]


@pytest.mark.parametrize(
    ("prompt", "message"), [("word " * 600, "the model reads at most 512"), ("", "a prompt is empty")]
)
def test_a_prompt_that_leaves_no_room_is_an_error_or_gets_no_answer(
    prompt: str, message: str, tokenizer: Any
) -> None:
    writer = model("full")
    with pytest.raises(ModelError, match=message):
        require_room(writer, tokenizer, ["Hello", prompt], special=True)
    alone = generate_texts(writer, tokenizer, ["Hello"], 5)
    assert generate_texts(writer, tokenizer, [prompt, "Hello"], 5) == ["", *alone]


@pytest.mark.parametrize("kind", ["full", "prompt tuning"])
def test_an_answer_stops_at_the_context_length_and_cuts_no_other(kind: str, tokenizer: Any) -> None:
    writer = model(kind)
    prompt = "a a"
    while len(tokenizer(prompt)["input_ids"]) < 500:
        prompt += " a"
    (alone,) = generate_texts(writer, tokenizer, ["Hello"], 20)
    answer, other = generate_texts(writer, tokenizer, [prompt, "Hello"], 20)
    assert 0 < len(tokenizer(answer)["input_ids"]) <= 12
    assert other == alone


def test_a_prompt_that_the_template_refuses_is_reported(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('no users') }}"
    with pytest.raises(ModelError, match="the chat template refuses the prompt: no users"):
        rendered(tokenizer, "Hello")


def test_a_system_message_is_rendered_as_the_template_has_a_place_for_it(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    as_given = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered(tokenizer, "Hello", system="Be brief.") == Prompt(as_given)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    found = rendered(tokenizer, "Hello", system="Be brief.")
    assert found.text == "<user>Be brief.\n\nHello<assistant>"
    assert "a system message is joined to the question" in found.remarks[0]


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    from transformers.utils import logging

    logging.disable_progress_bar()  # as `quiet_libraries` does for a process that has not imported it yet
    with pytest.raises(SystemExit) as ended:
        main(["generate", *arguments])
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err


@pytest.mark.parametrize("run", ["full", "lora", "full/checkpoint-30", "lora/checkpoint-30"])
def test_the_command_generates_with_runs_and_checkpoints(
    run: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = command(capsys, str(runs / run), "--prompt", PROMPTS[0], "--max-new-tokens", "6")
    assert (code, err) == (0, "")
    assert out.strip()
    code, as_json, _ = command(
        capsys, str(runs / run), "--prompt", PROMPTS[0], "--max-new-tokens", "6", "--json"
    )
    assert json.loads(as_json) == [{"prompt": PROMPTS[0], "answer": out.removesuffix("\n")}]


def test_the_command_sets_variables_of_the_template_and_a_system_message(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own"
    shutil.copytree(runs / "full", own, ignore=shutil.ignore_patterns("checkpoint-*"))
    for file in own.glob("chat_template*"):
        file.write_text(
            "{% for m in messages %}{{ m.content if m.role == 'system' or not loud }}{% endfor %}"
        )
    ask = ["--prompt", "Hello", "--max-new-tokens", "6"]
    plain = command(capsys, str(runs / "full"), *ask[:1], "Be brief.Hello", *ask[2:], "--raw")
    both = command(capsys, str(own), *ask, "--system", "Be brief.")
    assert both[0] == plain[0] == 0
    assert both[1].strip() == plain[1].strip()
    alone = command(capsys, str(runs / "full"), *ask[:1], "Be brief.", *ask[2:], "--raw")
    loud = command(
        capsys, str(own), *ask, "--system", "Be brief.", "--chat-template-kwargs", '{"loud": true}'
    )
    assert loud[1].strip() == alone[1].strip()
    code, _, err = command(capsys, str(own), *ask, "--raw", "--chat-template-kwargs", '{"loud": true}')
    assert code == 2
    assert "--chat-template-kwargs needs a chat template" in err


def test_for_an_unfinished_run_the_newest_checkpoint_generates(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "full" / "checkpoint-30", "run/checkpoint-30")
    code, out, err = command(capsys, "run", "--prompt", "Hello", "--prompt", "Bye", "--max-new-tokens", "4")
    assert code == 0
    assert err == (
        "model    run did not finish; using its newest checkpoint, run/checkpoint-30\n"
        "prompt   Hello\nprompt   Bye\n"
    )
    assert len(out.splitlines()) == 2


def test_standard_input_is_a_prompt(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(runs / "full"), "--max-new-tokens", "4", "--prompt"]
    _, expected, _ = command(capsys, *arguments, "Hello")
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello"))
    assert command(capsys, *arguments, "-")[1] == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    code, _, err = command(capsys, *arguments, "-")
    assert (code, err) == (2, "error: --prompt -: standard input is empty.\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing/at/all", "--prompt", "a"], "nothing/at/all: there is no such directory"),
        (["./no", "--prompt", "a"], "./no: there is no such directory"),
        (["my tuned model", "--prompt", "a"], "my tuned model: there is no such directory"),
        ([".", "--prompt", "a"], ". holds no model, no adapter and no checkpoint"),
        (["x.gguf", "--prompt", "a"], "x.gguf: there is no such file."),
        (["demo"], "Missing option '--prompt'"),
        (["demo", "--prompt", "a", "--max-new-tokens", "0"], "should be greater than or equal to 1"),
        (["demo", "--prompt", "-", "--prompt", "-"], "given only once"),
        (["demo", "--prompt", "a", "--raw", "--system", "b"], "--system needs a chat template"),
        (["demo", "--prompt", "a", "--chat-template-kwargs", "{"], "--chat-template-kwargs is not JSON"),
        (["demo", "--prompt", "a", "--chat-template-kwargs", "[]"], "takes a JSON object"),
        (
            ["demo", "--prompt", "a", "--chat-template-kwargs", '{"x": 1}'],
            "'x' cannot be set: the chat template does not read it",
        ),
    ],
)
def test_errors_are_reported_in_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = command(capsys, *arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("kind", ["rwkv", "blenderbot", "pegasus"])
def test_a_model_that_reads_padding_gets_none(kind: str, tokenizer: Any) -> None:
    """RWKV's state takes padding in, and these decoders count it as positions."""
    writer = tiny_model(kind, vocab_size=512).eval()
    with torch.no_grad():
        for weights in writer.parameters():
            if weights.ndim > 1:
                weights.mul_(3)
    alone = [generate_texts(writer, tokenizer, [text], 8, special=True)[0] for text in PROMPTS]
    assert generate_texts(writer, tokenizer, PROMPTS, 8, special=True) == alone
    assert len(set(alone)) > 1


@pytest.mark.parametrize("published", [{"repetition_penalty": 3.0}, {"encoder_repetition_penalty": 3.0}])
def test_padding_is_no_repetition(published: dict[str, float], tokenizer: Any) -> None:
    """Of a token that an answer begins with, as a model that was tuned without a padding token has."""
    writer = model("full")
    for name, value in published.items():
        setattr(writer.generation_config, name, value)
    answer = generate_texts(writer, tokenizer, [PROMPTS[1]], 8, special=True)[0]
    tokenizer.pad_token_id = tokenizer(answer, add_special_tokens=False)["input_ids"][0]
    alone = [generate_texts(writer, tokenizer, [text], 8, special=True)[0] for text in PROMPTS]
    assert generate_texts(writer, tokenizer, PROMPTS, 8, special=True) == alone


def test_a_token_that_the_model_does_not_have_is_named(tokenizer: Any) -> None:
    writer = model("full")
    tokenizer.add_tokens([f"<|filler-{n}|>" for n in range(writer.config.vocab_size - len(tokenizer))])
    tokenizer.add_tokens(["<|lamp|>"])
    tokenizer.pad_token = "<|lamp|>"
    with pytest.raises(ModelError, match=r"contains the token <\|lamp\|> \(id \d+\), .* the model has not"):
        require_room(writer, tokenizer, ["Hello", "a <|lamp|>"], special=True)
    alone = [generate_texts(writer, tokenizer, [text], 5)[0] for text in PROMPTS]
    assert generate_texts(writer, tokenizer, ["a <|lamp|>", *PROMPTS], 5) == ["", *alone]
