"""No secret gets through, and nothing else is hidden."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.config.load.load import known_keys, load
from fmstune.errors import ConfigError
from fmstune.secrets.forms import hide_forms
from fmstune.secrets.names import is_secret_name, names_credential
from fmstune.secrets.redaction import (
    REDACTED,
    Redactor,
    config_secrets,
    hide,
    holds_redacted,
    know_secrets,
    secret_texts,
)
from tests.support.secret_texts import FORMS, OTHER_NAMES, SECRET_NAMES

CREDENTIALS = """
    dbpass DBPASS PGPASS userpass smtppass rootpass sshpass hftoken HFTOKEN GHTOKEN wandbkey openaikey privkey
    passkey huggingface_key hub_key mistral_key cohere_key gemini_key google_key together_key deepseek_key
    sas_url otp csrf hub_token HF_TOKEN access_token bearer_token refresh_token session_token github_token
    slack_token password secret api_key private_key credentials
"""
TRACKED = """
    token eot_token rare_tokens top_tokens predicted_token gold_token source_token fim_token tool_token
    boi_token img_token newline_token secret_word password_strength file_pat regex_pat my_token next.token
"""
COMMIT = "2f4d1a819b424bacb61d94122f4d1a819b424bac"


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_the_value_of_a_secret_name_is_hidden(name: str) -> None:
    assert is_secret_name(name)
    assert Redactor({}).mapping({name: "abc"}) == {name: REDACTED}


@pytest.mark.parametrize("name", CREDENTIALS.split())
def test_the_name_of_a_credential_hides_its_value_in_any_position(name: str) -> None:
    assert is_secret_name(name)
    assert names_credential(name)
    for redactor in (Redactor({}), Redactor({name: "plainsecret99"})):
        assert redactor.mapping({name: "plain"}, tracked=True) == {name: REDACTED}
        assert redactor.mapping({name: "plain"}) == {name: REDACTED}


@pytest.mark.parametrize("name", TRACKED.split())
def test_token_metrics_of_a_training_are_kept_and_credentials_among_them_are_hidden(name: str) -> None:
    redactor = Redactor({})
    kept = {name: "Paris", "list": {name: ["the", " of", "\n"]}, "note": f"{name}=Paris {name}: 'the' x"}
    assert redactor.mapping(kept, tracked=True) == kept
    assert redactor.metrics(kept) == kept
    drawn = "aB3xY7zQ0kL9mN2pR5tV"
    if "token" in name:
        assert redactor.mapping({name: drawn}, tracked=True) == {name: REDACTED}
    assert list(secret_texts({name: "Paris"}, tracked=True)) == []


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_technical_terms_are_no_secrets(name: str) -> None:
    assert not is_secret_name(name)
    assert Redactor({}).mapping({name: "<pad>", "n": {name: 3}}) == {name: "<pad>", "n": {name: 3}}


def test_of_all_settings_only_the_hub_token_is_a_secret() -> None:
    for method in ("sft", "dpo", "kto", "reward"):
        assert [key for key in known_keys(method) if is_secret_name(key)] == ["training.hub_token"]


def test_lists_numbers_and_everything_else_under_a_secret_name_are_hidden() -> None:
    values = {
        "api_keys": ["abc", "def"], "password": 12345678, "secrets": {"wandb": "x", "deep": [{"a": "y"}]},
        "use_auth_token": True, "token": None, "tool_token": "<tool>", "target_tokens": 5000,
    }  # fmt: skip
    assert Redactor({}).mapping(values) == {
        "api_keys": [REDACTED, REDACTED], "password": REDACTED,
        "secrets": {"wandb": REDACTED, "deep": [{"a": REDACTED}]},
        "use_auth_token": True, "token": None, "tool_token": "<tool>", "target_tokens": 5000,
    }  # fmt: skip
    assert Redactor({}).mapping({"wandb": "x"}, "secrets") == {"wandb": REDACTED}


def test_the_value_of_a_metric_is_kept_whatever_its_name() -> None:
    found = Redactor({}).metrics({"token": 0.5, "password": 1, "api_key": "abc", FORMS[0]: 2, FORMS[1]: 3})
    assert found == {"token": 0.5, "password": 1, "api_key": REDACTED, REDACTED: 2, f"{REDACTED} 2": 3}


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("postgres://me:hunter2@db:5432/x", f"postgres://{REDACTED}@db:5432/x"),
        ("https://u:p@ss@h/x", f"https://{REDACTED}@h/x"),
        ("https://u:pa/ss@h:80/x", f"https://{REDACTED}@h:80/x"),
        ("https://0123456789abcdef0123@sentry.io/1", f"https://{REDACTED}@sentry.io/1"),
        ("https://h/x?token=abc&run=1", f"https://h/x?token={REDACTED}&run=1"),
        ("https://h/x?X-Amz-Signature=0a%2f&run=1", f"https://h/x?X-Amz-Signature={REDACTED}&run=1"),
        ("AccountKey=abc==;EndpointSuffix=x", f"AccountKey={REDACTED};EndpointSuffix=x"),
        ('{"api_key": "ab\\"cd", "loss": 1}', f'{{"api_key": "{REDACTED}", "loss": 1}}'),
        ('"{\\"token\\": \\"a b\\"}"', f'"{{\\"token\\": \\"{REDACTED}\\"}}"'),
        ("Config(api_key='abc', lr=0.1)", f"Config(api_key='{REDACTED}', lr=0.1)"),
        ("mysql --password hunter2 -h db", f"mysql --password {REDACTED} -h db"),
        ("--set trackers.x.api_key=abc --lora", f"--set trackers.x.api_key={REDACTED} --lora"),
        ("Authorization: Digest abc, def", f"Authorization: Digest {REDACTED}"),
        (f"machine h login user password {COMMIT}", f"machine h login user password {REDACTED}"),
        ("Incorrect API key provided: plainsecretkey99.", f"Incorrect API key provided: {REDACTED}"),
        ("curl -u bob:hunter2secret https://h", f"curl -u bob:{REDACTED} https://h"),
        ("mysql -h db -phunter2secret x", f"mysql -h db -p{REDACTED} x"),
        ("password: hunter2, then", f"password: {REDACTED}, then"),
        ("X-Auth-Token: plainsecretabc", f"X-Auth-Token: {REDACTED}"),
        ("['t.py', '--api-key', 'plain', 'x']", f"['t.py', '--api-key', '{REDACTED}', 'x']"),
        (f"wandb: your API key {COMMIT}", f"wandb: your API key {REDACTED}"),
    ],
)  # fmt: skip
def test_only_the_secret_in_a_text_is_hidden(text: str, hidden: str) -> None:
    assert hide_forms(text) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "https://wandb.ai/team/project", "http://localhost:8080/@user", "ssh://git@github.com/x",
        "hf://datasets/user@main/file", "file:///data/x@y.jsonl", "C:/Users/me@host/data",
        "/home/somebody/task-specific-fine-tuning-v2/train.jsonl", "org/risk-averse-model-2-training",
        f"wandb: git commit {COMMIT}", COMMIT, "basic training is fun", "bearer of good news",
        "token: the next one", "tokens=512 pad_token='<pad>' token=None password=",
        "HuggingFaceTB/SmolLM2-135M", "docker run -u 1000:1000 http://h", "mysql -P 3306 -h db",
        "the token provided: none", "data/train.csv:12: bad row",
        "### Q: {question}\n### A: {answer}", "sk-learn-pipeline-something",
    ],
)  # fmt: skip
def test_paths_models_commits_and_prose_are_unchanged(text: str) -> None:
    assert Redactor({}).value({"a": [text]}) == {"a": [text]}


THINGS = """
    glaiveai/glaive-function-calling-v2 glaive-code-assistant-v2 knowledgator/gliner-multitask-large-v0.5
    global-mmlu-lite-subset-train.jsonl runs/glue-finetune-cola-seed1 data/sk-wikipedia-20240101.jsonl
    models/sk-gpt2-small-finetuned sk-SK-common-voice-17 xai-explanations-for-nli-v1
    pplx-online-distilled-dataset-v1 data/hf_instructiontuning2024.jsonl xoxo-sweet-lyrics-dataset
    https://my-organisation-name@dev.azure.com/x/y data/lang=sk/token=bpe32000/part.parquet
    lang=sk/token=bpe32000/part.parquet data/pass=1/part-0.parquet pypi-package-descriptions-2024
    wandb_v1_experiment_comparison_table github_pat_rotation_howto_dataset sk_test_set2024evaluation
"""


@pytest.mark.parametrize("name", THINGS.split())
def test_a_name_that_begins_like_a_token_is_unchanged(name: str) -> None:
    assert hide_forms(name) == name
    assert hide_forms(f"loading {name} now") == f"loading {name} now"


STARTS = "hf_ sk- sk-proj- sk-or- xai- pplx- nvapi- glue- gliner- gl- gsk_ r8_ npm_ pypi- ghs_ xoxo- SG."
PARTS = """
    instruct Instruct tuning wikipedia Slovak Bratislava function calling code SmolLM2 Qwen2 GPT MMLU 135M
    0.5B v2 v0.5 8x7b 20240101 2024-01-01 fp16 finetuned train eval seed1 step500 global lite org Mistral
    OpenHermes UltraFeedback internationalisation Internationalisation LoRA r16 nemotron json
"""
BASE62 = string.ascii_letters + string.digits


@given(
    st.sampled_from(["", *STARTS.split()]),
    st.lists(st.sampled_from(PARTS.split()), min_size=1, max_size=9),
    st.lists(st.sampled_from("-_./"), min_size=9, max_size=9),
)
def test_a_name_of_words_dates_and_versions_is_never_changed(
    start: str, parts: list[str], separators: list[str]
) -> None:
    name = start + "".join(f"{part}{sign}" for part, sign in zip(parts, separators, strict=False)).rstrip(
        "-_./"
    )
    assert Redactor({}).value({"path": name, "note": f"of {name}."}) == {"path": name, "note": f"of {name}."}


@given(
    st.randoms(use_true_random=False),
    st.sampled_from(
        [("hf_", BASE62, 34), ("ghp_", BASE62, 36), ("glpat-", BASE62 + "-_", 20), ("sk-", BASE62, 48),
         ("sk-", "0123456789abcdef", 32), ("sk-proj-", BASE62 + "-_", 148),
         ("sk-ant-api03-", BASE62 + "-_", 93), ("sk-or-v1-", "0123456789abcdef", 64), ("xai-", BASE62, 80),
         ("pplx-", BASE62, 48), ("nvapi-", BASE62 + "-_", 64), ("gsk_", BASE62, 52), ("r8_", BASE62, 37),
         ("npm_", BASE62, 36),
         ("wandb_v1_", BASE62 + "_", 77), ("github_pat_11", BASE62, 80), ("AKIA", "ABCDEFGH2345", 16),
         ("sk_live_", BASE62, 24), ("glrt-", BASE62, 20)]
    ),
)  # fmt: skip
def test_a_token_in_its_issuers_format_is_always_hidden(
    chance: random.Random, form: tuple[str, str, int]
) -> None:
    # From a seeded generator: hypothesis would shrink letters to `aaaa`, which no issuer generates.
    start, letters, length = form
    seeded = random.Random(chance.getrandbits(64))
    token = start + "".join(seeded.choices(letters, k=length))
    assert hide_forms(f"key {token}, {token}") == f"key {REDACTED}, {REDACTED}"
    assert hide_forms(f"a/{token}?x") == f"a/{REDACTED}?x"


def test_the_values_of_secret_environment_variables_are_hidden_everywhere() -> None:
    redactor = Redactor(
        {"PGPASSWORD": "0123456789abcdef", "EDITOR": "emacs-of-my-own", "SHORT_TOKEN": "abc",
         "DATABASE_URL": "postgres://me:correct%20horse@db/x", "PWD": "/home/somebody"}
    )  # fmt: skip
    assert redactor.text("using 0123456789abcdef here") == f"using {REDACTED} here"
    assert redactor.text("login failed for correct horse") == f"login failed for {REDACTED}"
    assert redactor.text("emacs-of-my-own abc /home/somebody/x") == "emacs-of-my-own abc /home/somebody/x"


def test_a_short_secret_is_hidden_only_as_a_whole_word() -> None:
    redactor = Redactor({"PGPASSWORD": "hunter2"})
    for text in ("using {} here", "it is '{}'.", '{{"x": "a\\n{}"}}', "me:{}@host", "{}"):
        assert redactor.text(text.format("hunter2")) == text.format(REDACTED)
    for text in ("models/hunter2/x", "hunter2.jsonl", "my-hunter2", "hunter22", "data/hunter2"):
        assert redactor.text(text) == text
    assert Redactor({"PGPASSWORD": "abc"}).value(["abc", "x abc"]) == ["abc", "x abc"]


@pytest.mark.parametrize("word", ["postgres", "minioadmin", "changeme", "password", "training", "1234"])
def test_a_secret_that_is_a_common_word_changes_no_name_no_path_and_no_prose(word: str) -> None:
    redactor = Redactor({"PGPASSWORD": word})
    tables = {
        "data": {"train": f"{word}-qa.jsonl", "columns": {word: word}},
        "model": {"path": word, "revision": "hf_" + "aB3" * 11 + "x"},
        "training": {"output_dir": word, "lr_scheduler_type": word, "learning_rate": 0.1},
        "trackers": {word: {"repo": f"/x/{word}/y"}},
    }
    assert redactor.configuration(tables) == tables
    for text in (f"data/{word}/a.jsonl", f"the {word} phase", f"{word}_loss", f"in {word}, {word}."):
        assert redactor.text(text) == text
    assert redactor.metrics({word: 1.0, f"{word}/loss": 2}) == {word: 1.0, f"{word}/loss": 2}
    assert redactor.mapping({"x": word, "y": f"{word}-qa"}, tracked=True) == {
        "x": REDACTED,
        "y": f"{word}-qa",
    }
    for text in ("PGPASSWORD={}", "password: {}", "the password is {}", "postgres://me:{}@h/x"):
        assert word not in redactor.text(text.format(word)).replace("password", "").replace("postgres:", "")


def test_the_paths_of_a_configuration_lose_only_the_password_of_a_url() -> None:
    redactor = Redactor({"API_KEY": "aB3xY7zQ0kL9"})
    tables = {"data": {"train": ["x/aB3xY7zQ0kL9.jsonl", {"path": "https://me:pw@h/a.jsonl"}]}}
    assert redactor.configuration({**tables, "params": {"api_key": "abc", "token": "Paris"}}) == {
        "data": {"train": ["x/aB3xY7zQ0kL9.jsonl", {"path": f"https://{REDACTED}@h/a.jsonl"}]},
        "params": {"api_key": REDACTED, "token": "Paris"},
    }
    assert redactor.setting("data.train", "https://h/a?token=abc") == f"https://h/a?token={REDACTED}"
    known = {"trackers": {"x": {"token": "of-a-tracker"}}, "params": {"token": "Paris", "api_key": "of-mine"}}
    assert list(config_secrets(known)) == ["of-a-tracker", "of-mine"]


def test_the_arguments_of_a_command_lose_what_follows_a_secret_flag() -> None:
    argv = ["train.py", "--api-key", "plainsecret99", "--token", "--lr", "0.1", "-p", "8080"]
    for tracked in (True, False):
        assert Redactor({}).value({"argv": argv}, tracked=tracked)["argv"] == [
            *argv[:2], REDACTED, *argv[3:]
        ]  # fmt: skip


def test_the_path_of_a_file_that_contains_a_secret_is_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "credentials.json"
    file.touch()
    redactor = Redactor({"GOOGLE_APPLICATION_CREDENTIALS": str(file), "DATA_SECRET": str(tmp_path)})
    assert redactor.text(str(file)) == str(file)


def test_secrets_that_sdks_store_in_files_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HF_HOME", raising=False)
    written = {
        ".netrc": f"machine api.wandb.ai\n  login user\n  password {COMMIT}\n",
        ".cache/huggingface/token": "old-style-token-of-the-hub\n",
        ".aws/credentials": "[default]\naws_secret_access_key = aBcDeFgH0123/+\nregion = somewhere-1\n",
        ".git-credentials": "https://me:git-planted-pw@example.org\n",
        ".config/wandb/settings": "[default]\napi_key = settings-planted-key\nproject = not-a-secret\n",
    }
    for name, text in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for secret in (
        COMMIT, "old-style-token-of-the-hub", "aBcDeFgH0123/+", "git-planted-pw", "settings-planted-key",
    ):  # fmt: skip
        assert hide(f"it is {secret}.") == f"it is {REDACTED}."
    assert hide("not-a-secret, somewhere-1") == "not-a-secret, somewhere-1"


def test_the_secrets_of_a_configuration_are_hidden_in_all_output_of_this_process() -> None:
    options = {
        "x": {"api_key": "planted-0123", "uri": "https://u:planted-4567@h", "keys": {"secret": [87654321]}}
    }
    try:
        know_secrets(secret_texts(options))
        assert hide("planted-0123 planted-4567 87654321") == f"{REDACTED} {REDACTED} {REDACTED}"
    finally:
        know_secrets(())
    assert hide("planted-0123") == "planted-0123"


@pytest.mark.parametrize(
    "value", ['"[redacted]"', '"https://[redacted]@h/a.jsonl"', '["a.jsonl", "[redacted]"]']
)
def test_a_setting_with_a_redacted_secret_is_asked_for(tmp_path: Path, value: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"[data]\ntrain = {value}\n")
    with pytest.raises(ConfigError, match=r"config\.toml.*data\.train .* \[redacted\].*--set data\.train=…"):
        load(file)


def test_values_with_redacted_secrets_are_known_to_be_unusable() -> None:
    assert holds_redacted({"a": [{"uri": f"https://{REDACTED}@h"}]})
    assert not holds_redacted({"a": [{"uri": "https://h", "n": 1}]})


SECRET_PAIRS = {
    "env": [{"name": "DB_PASSWORD", "value": "hunter2hunter3"}, {"key": "api_key", "value": "qwertyuiopas"}],
    "pairs": [("api_key", "qwertyuiopas"), ["X-Api-Key", "abcdefgh"]],
    "one": ("password", "abcdefgh123"),
}


def test_a_secret_in_a_pair_of_name_and_value_is_hidden_by_its_name() -> None:
    """As in Kubernetes, header lists and `dict.items()`."""
    found = json.dumps(Redactor({}).mapping(SECRET_PAIRS, tracked=True))
    assert not any(secret in found for secret in ("hunter2", "qwerty", "abcdefgh"))
    assert "DB_PASSWORD" in found
    harmless = {"columns": ["token", "label"], "range": [1, 2], "entry": {"name": "lr", "value": 0.1}}
    assert Redactor({}).mapping(harmless, tracked=True) == harmless
