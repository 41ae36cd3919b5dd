"""Models and data from the Hub: found, pinned to their commit, and errors are reported within a second.

The Hub is a stand-in, because there is no network; its clients are the real ones.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmstune import demo
from fmstune.cli.main import main
from fmstune.config.load.load import load
from fmstune.config.schema.tables import RunConfig
from fmstune.errors import DataError, ModelError
from fmstune.hub import pinned
from fmstune.layout import CONFIG_NAME
from fmstune.run.look_ahead import look_ahead
from tests.support.commands import fmstune
from tests.support.here import command
from tests.support.hub import Hub, read_again

NAMES = ("model.path=org/tiny", "data.train=org/chats")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("hub")
    tiny = folder / "models/org/tiny"
    demo.build_model(1).save_pretrained(tiny)
    AutoTokenizer.from_pretrained(demo.model_dir()).save_pretrained(tiny)
    for name in ("secret", "terms"):
        shutil.copytree(tiny, folder / f"models/org/{name}")
    (folder / "models/org/adapter").mkdir()
    (folder / "models/org/adapter/adapter_config.json").write_text('{"peft_type": "LORA"}')
    chats = folder / "datasets/org/chats"
    chats.mkdir(parents=True)
    shutil.copy(demo.data_file("train"), chats / "train.jsonl")
    shutil.copy(demo.data_file("eval"), chats / "validation.jsonl")
    return folder


@pytest.fixture
def hub(repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub from which nothing has been downloaded yet."""
    monkeypatch.chdir(tmp_path)
    with Hub(repositories, private=("org/secret",), gated=("org/terms",)) as running:
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        read_again(monkeypatch.setattr)
        yield running


def asked(*sets: str, resumed: Path | None = None) -> RunConfig:
    warnings: list[str] = []
    config = pinned(load(None, [], list(sets)), warnings.append, resumed)
    assert not warnings
    return config


def test_a_run_pins_what_it_downloads_and_can_be_repeated_without_the_hub(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ["train", "--max-steps", "1", "--output-dir"]
    done = command(*train, "out", "--model", "org/tiny", "--data", "org/chats", cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    assert "data     org/chats · 400 rows (messages)" in done.stderr
    written = load(Path("out", CONFIG_NAME), [], [])
    assert written.model.revision == hub.commit("models", "org/tiny")
    assert written.data.train[0].revision == hub.commit("datasets", "org/chats")
    card = Path("out/README.md").read_text()
    assert "\nbase_model: org/tiny\ndatasets: [org/chats]\n---" in card
    assert f"`org/tiny` at `{written.model.revision[:12]}`" in card
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    read_again(monkeypatch.setattr)
    hub.asked.clear()
    again = command(*train, "again", "out/config.toml", cwd=Path.cwd())
    assert again.returncode == 0, again.stderr
    assert not hub.asked
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()


def test_two_processes_download_a_model_once_and_a_stream_is_read_from_the_hub(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["--model", "org/tiny", "--data", "org/chats", "--set", "data.streaming=true"]
    train = ["train", "--nproc", "2", *names, "--max-steps", "1", "--output-dir", "out"]
    here = Path.cwd()
    for name in ("HF_ENDPOINT", "HF_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = fmstune(hub.url, str(here / "cache"), *train, cwd=here, module="tests.support.hub")
    assert done.returncode == 0, done.stderr
    assert "data     org/chats · streamed (messages)" in done.stderr
    assert hub.downloads("model.safetensors") == 1


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            ["model.path=org/none"],
            "model.path = 'org/none': no such local path, and no such model",
        ),
        (
            ["model.path=oneword"],
            "model.path = 'oneword': no such local path, and no such model",
        ),
        (
            ["model.path=org/secret"],
            "no such model on the hub that this account can access. .* needs `hf auth login`",
        ),
        (
            ["model.path=org/terms"],
            "this repository is gated. Accept its terms at http://127.0.0.1:.*/org/terms,",
        ),
        (
            ["model.path=org/adapter"],
            "it is an adapter. Download it.*: hf download org/adapter --local-dir adapter",
        ),
        (["model.revision=v9"], "model.path = 'org/tiny': no branch, tag or commit 'v9' on the hub."),
        (
            ["data.train=org/none"],
            "data.train = 'org/none': no such local path, .* no such data set",
        ),
        (["data.eval=org/none"], "data.eval = 'org/none': no such local path"),
    ],
)
def test_what_cannot_be_downloaded_is_reported_with_a_remedy(hub: Hub, sets: list[str], message: str) -> None:
    with pytest.raises((ModelError, DataError), match=message) as error:
        asked(*NAMES, *sets)
    assert error.value.exit_code == 2


def test_a_token_gives_access_to_private_repositories_and_is_written_nowhere(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", Hub.token)
    for name in ("org/secret", "org/terms"):
        config = asked(*NAMES, f"model.path={name}")
        assert config.model.revision == hub.commit("models", name)
        assert Hub.token not in repr(config)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ModelError, match=r"the hub rejects the token \(401\)") as error:
        asked(*NAMES)
    assert "hf_wrong" not in str(error.value)


@pytest.mark.parametrize("answer", [429, 500])
def test_if_the_hub_is_down_its_cache_is_used(hub: Hub, answer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, hf_hub_download

    hub.answer = answer
    with pytest.raises(
        ModelError, match=rf"nor in the hub's cache, .* cannot be reached \(.*status {answer}\)"
    ):
        asked(*NAMES)
    hub.answer = "ok"
    hf_hub_download("org/tiny", "config.json", endpoint=hub.url)
    hub.answer = answer
    warnings: list[str] = []
    config = load(None, [], list(NAMES))
    try:
        assert pinned(config, warnings.append) == config
        assert constants.HF_HUB_OFFLINE
    finally:
        os.environ.pop("HF_HUB_OFFLINE")
    (said,) = warnings
    assert said.endswith(f"status {answer}): using only its local cache")


@pytest.mark.parametrize("name", ["org/tiny", "gpt2-of-nobody"])
def test_offline_an_uncached_model_is_an_error_at_once(
    name: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=rf"{name}.* nor in the hub's cache, .*HF_HUB_OFFLINE is set"):
        asked(f"model.path={name}", "data.train=demo")
    assert not hub.asked


def test_generate_queries_the_hub_before_anything_is_loaded(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fmstune.models.load", None)  # importing it would fail
    with pytest.raises(SystemExit) as end:
        main(["generate", "org/nowhere", "--prompt", "hi"])
    assert end.value.code == 2
    assert "no such model on the hub" in capsys.readouterr().err


def test_a_name_that_ends_with_a_slash_is_a_directory() -> None:
    config = load(None, [], ["model.path=nowhere/", "data.train=demo"])
    with pytest.raises(ModelError, match=r"nowhere/.*no such directory"):
        look_ahead(config)


def test_a_hub_that_never_answers_is_awaited_only_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmstune.hub._SECONDS", 0.2)
    hub.answer = "stall"
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        asked(*NAMES)
    assert len(hub.asked) == 1


def test_a_resumed_run_keeps_its_commits(hub: Hub, tmp_path: Path) -> None:
    Path(CONFIG_NAME).write_text(
        f"[model]\npath = 'org/tiny'\nrevision = '{'a' * 40}'\n"
        f"[[data.train]]\npath = 'org/chats'\nrevision = '{'b' * 40}'\n"
    )
    with pytest.raises(ModelError, match=f"no branch, tag or commit '{'a' * 40}'"):
        asked(*NAMES, resumed=tmp_path)
    with pytest.raises(DataError, match=f"no branch, tag or commit '{'b' * 40}'"):
        asked(*NAMES, "model.revision=main", resumed=tmp_path)


def test_local_files_are_not_looked_up_on_the_hub(hub: Hub) -> None:
    Path("org/tiny").mkdir(parents=True)
    assert asked("model.path=org/tiny", "data.train=demo").model.revision is None
    assert not hub.asked
