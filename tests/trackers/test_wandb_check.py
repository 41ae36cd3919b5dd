"""The check of W&B's tracker distinguishes causes, ends in time and changes nothing."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from fmstune.trackers.records import Check
from fmstune.trackers.wandb_tracker import WandbTracker
from tests.support.wandb_cloud import WandbCloud
from tests.support.wandb_isolation import FAKE_KEY, SECRET, children, refused_url

pytestmark = pytest.mark.usefixtures("isolated_wandb")


def _world() -> tuple[dict[str, bytes | None], dict[str, str], set[str]]:
    """What a check must not change: files in the home and current folder, environment, child processes."""
    paths = [*Path.home().rglob("*"), *Path.cwd().rglob("*")]
    files = {str(path): path.read_bytes() if path.is_file() else None for path in paths}
    return files, dict(os.environ), children()


def _check(timeout: float = 5.0, **options: Any) -> Check:
    """The result of the check. In all cases, nothing has changed and no string contains a key."""
    netrc = Path.home() / ".netrc"
    if not netrc.exists():
        netrc.write_text("machine example.org login ada password x\n", encoding="utf-8")
    before = _world()
    found = WandbTracker(tracker_config=options).check(timeout)
    assert _world() == before
    for key in (WandbCloud.key, FAKE_KEY, SECRET):
        assert key not in repr(found)
    assert found.detail
    return found


class TestCheck:
    def test_a_good_key_is_ok_with_server_account_and_latency(self, cloud: WandbCloud) -> None:
        found = _check()
        assert (found.state, found.server, found.account) == ("ok", cloud.url, "ada")
        assert found.latency is not None
        assert 0 < found.latency < 5
        assert not cloud.runs
        assert len(cloud.requests) == 1

    def test_a_key_from_netrc_is_found_by_the_server_it_is_for(
        self, cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("WANDB_API_KEY")
        entry = f"machine {cloud.url.removeprefix('http://')} login user password {cloud.key}\n"
        (Path.home() / ".netrc").write_text(entry, encoding="utf-8")
        assert _check().ok
        monkeypatch.setenv("NETRC", str(Path.home() / "other"))
        assert _check().state == "no_credentials"

    def test_server_and_mode_of_the_settings_file_are_used(
        self, cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("WANDB_BASE_URL")
        settings = Path.home() / ".config" / "wandb" / "settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(f"[default]\nbase_url = {cloud.url}\n", encoding="utf-8")
        assert _check().server == cloud.url
        settings.write_text("[default]\nmode = offline\n", encoding="utf-8")
        assert _check().detail.startswith("offline")

    def test_no_key(self, cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WANDB_API_KEY")
        found = _check()
        assert found.state == "no_credentials"
        assert "wandb login" in found.remedy
        assert not cloud.requests

    def test_a_malformed_key(self, cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "tooshort")
        found = _check()
        assert found.state == "bad_option"
        assert "has 8" in found.detail
        assert "tooshort" not in repr(found)
        assert not cloud.requests

    def test_a_wrong_key(self, cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
        found = _check()
        assert found.state == "rejected_credentials"
        assert "401" in found.detail

    @pytest.mark.parametrize("answer", [403, "no_viewer"])
    def test_a_key_that_the_server_refuses(self, cloud: WandbCloud, answer: Any) -> None:
        cloud.answer = answer
        assert _check().state == "rejected_credentials"

    @pytest.mark.parametrize("answer", [500, 503, 429])
    def test_a_failing_server_is_an_outage(self, cloud: WandbCloud, answer: Any) -> None:
        cloud.answer = answer
        found = _check()
        assert found.outage
        assert str(answer) in found.detail

    def test_a_black_hole_is_an_outage_and_the_check_ends_in_time(self, cloud: WandbCloud) -> None:
        cloud.answer = "black_hole"
        found = _check(timeout=1.0)
        assert found.outage
        assert "no answer in 0.5 s" in found.detail

    def test_a_refused_port_is_an_outage(self, cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_BASE_URL", refused_url())
        found = _check()
        assert found.outage
        assert "refused" in found.detail

    def test_an_unknown_host_is_an_outage(self, cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown(*_: Any, **__: Any) -> Any:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)  # tests query no real name server
        monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.invalid")
        found = _check()
        assert found.outage
        assert "resolved" in found.detail

    def test_a_server_without_tls_is_an_outage(
        self, cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_BASE_URL", cloud.url.replace("http:", "https:"))
        found = _check()
        assert found.outage
        assert "TLS" in found.detail

    def test_another_web_server_is_a_wrong_option(self, cloud: WandbCloud) -> None:
        cloud.answer = 404
        assert _check().state == "bad_option"

    def test_the_users_own_entity_and_a_teams_entity_are_writable(self, cloud: WandbCloud) -> None:
        assert _check(entity="ada").ok
        assert _check(entity="nlp").ok

    def test_a_foreign_entity_is_not_writable(self, cloud: WandbCloud) -> None:
        found = _check(entity="strangers")
        assert found.state == "no_permission"
        assert "nlp" in found.remedy

    def test_a_read_only_project(self, cloud: WandbCloud) -> None:
        cloud.read_only = frozenset({"nlp/shared"})
        assert _check(entity="nlp", project="shared").state == "no_permission"
        assert _check(entity="nlp", project="own").ok

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"mode": "onlin"}, "mode"),
            ({"project": "a/b"}, "project"),
            ({"entity": "a b"}, "entity"),
            ({"tags": ("x" * 65,)}, "tags"),
        ],
    )
    def test_an_invalid_option_is_named(self, options: dict[str, Any], said: str) -> None:
        found = _check(**options)
        assert found.state == "bad_option"
        assert said in found.detail.lower()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("WANDB_BASE_URL", f"ftp://ada:{SECRET}@x"),
            ("WANDB_BASE_URL", f"https://ada:{SECRET}@wandb.ai"),
            ("WANDB_MODE", "onlin"),
            ("WANDB_TAGS", "a," + "x" * 65),
            ("WANDB_INIT_TIMEOUT", "soon"),
        ],
    )
    def test_an_invalid_environment_variable_is_a_wrong_option(
        self, name: str, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, value)
        found = _check()
        assert found.state == "bad_option"
        assert found.detail.startswith(f"{name} = '{value[:3]}")
        assert found.remedy == f"correct {name}"
        assert SECRET not in repr(found)

    def test_an_identity_token_is_reported_as_unverified(self, monkeypatch: pytest.MonkeyPatch) -> None:
        token = Path.home() / "token"
        monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", str(token))
        assert _check().state == "no_credentials"
        token.write_text("a.b.c", encoding="utf-8")
        found = _check()
        assert found.ok
        assert "identity token" in found.detail

    def test_offline_needs_no_key_but_a_writable_folder(self, isolated_wandb: Path) -> None:
        found = _check(mode="offline")
        assert found.ok
        assert str(isolated_wandb / "here" / "wandb") in found.detail
        assert "wandb sync" in found.detail
        assert _check(mode="offline", dir="not/yet/there").ok
        assert _check(mode="offline", dir=str(Path.home() / ".netrc")).state == "bad_option"

    def test_disabled_mode_is_reported(self) -> None:
        found = _check(mode="disabled")
        assert found.ok
        assert "disabled" in found.detail
