"""Without a network, no process waits for the Hub; without the other ranks, no process waits for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fmstune.config.load.load import load
from fmstune.errors import ConfigError
from fmstune.hub import stay_offline_without_network
from fmstune.launch.environment import require_whole_launch
from fmstune.launch.rank import needs_process_group


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")  # a name that never resolves (RFC 6761)


def asked(model: str) -> str | None:
    return stay_offline_without_network(load(None, [], [f"model.path={model}", "data.train=demo"]))


def test_an_unreachable_hub_is_not_queried_and_that_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    said = asked("owner/name")
    assert said == "hub.invalid cannot be resolved: using only the local cache of the hub"
    assert os.environ.pop("HF_HUB_OFFLINE") == "1"


def test_local_models_are_not_looked_up_on_the_hub() -> None:
    Path("owner/name").mkdir(parents=True)
    assert asked("owner/name") is None
    assert asked("demo") is None
    assert "HF_HUB_OFFLINE" not in os.environ


def test_the_users_settings_and_a_proxy_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert asked("owner/name") is None
    monkeypatch.delenv("HTTPS_PROXY")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert asked("owner/name") is None


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"WORLD_SIZE": "2"},
            "RANK, LOCAL_RANK, MASTER_PORT, MASTER_ADDR are not set: start them with --nproc",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "29500"},
            "together, but MASTER_ADDR is not set",
        ),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two' in the environment is not a number; unset it."),
        ({"RANK": "-1"}, "RANK = '-1' in the environment is not a number"),
        ({"RANK": "1"}, "RANK = 1 .* but WORLD_SIZE = .not set.: start them with --nproc or torchrun"),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "1"}, "LOCAL_RANK = 1 .* but WORLD_SIZE = 1: start them"),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
            "OMPI_COMM_WORLD_SIZE = 2 .* MPI has started several processes, which would not train together",
        ),
        ({"PMI_SIZE": "4"}, "PMI_SIZE = 4 .* or unset PMI_SIZE if each is a run of its own"),
        (
            {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
            "accelerate was asked for several processes but has started one",
        ),
    ],
)
def test_an_incomplete_set_of_launcher_variables_is_reported(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        require_whole_launch()


def test_one_process_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    require_whole_launch()
    monkeypatch.setenv("WORLD_SIZE", "1")
    require_whole_launch()


@pytest.mark.parametrize("setting", ["fsdp", "deepspeed"])
def test_a_sharded_model_gets_a_process_group_unless_a_launcher_set_all_its_variables(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not needs_process_group({})
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        assert needs_process_group({setting: {"stage": 2}})
        monkeypatch.setenv(name, "0")
    assert not needs_process_group({setting: {"stage": 2}})
