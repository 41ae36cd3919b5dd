"""A command line loads the named command in full, and of the others only what the list of commands shows."""

from __future__ import annotations

import pytest
import typer

from fmstune.cli.app import COMMANDS, app, app_for


@pytest.mark.parametrize("name", COMMANDS)
def test_a_named_command_is_complete_and_the_list_of_commands_is_the_same(name: str) -> None:
    listed = typer.main.get_command(app)
    alone = typer.main.get_command(app_for([name, "--help"]))
    assert alone.commands.keys() == COMMANDS.keys()  # type: ignore[attr-defined]
    assert list(listed.commands) == list(COMMANDS)  # type: ignore[attr-defined]
    for other in COMMANDS:
        ours, theirs = alone.commands[other], listed.commands[other]  # type: ignore[attr-defined]
        assert ours.get_short_help_str(200) == theirs.get_short_help_str(200) == COMMANDS[other].summary
        if other == name:
            assert [each.name for each in ours.params] == [each.name for each in theirs.params]
            assert list(getattr(ours, "commands", ())) == list(getattr(theirs, "commands", ()))


def test_shell_completion_loads_all_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_FMSTUNE_COMPLETE", "complete_bash")
    made = typer.main.get_command(app_for(["train"]))
    assert made.commands["merge"].params  # type: ignore[attr-defined]
