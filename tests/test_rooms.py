"""The house's rooms: imports go down the list of rooms, and no two files need each other."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fmstune"

ROOMS = (
    "errors", "layout", "_version", "secrets", "text", "user_code", "console", "transformers_compat",
    "config", "system", "trackers", "delivery", "testing", "resources", "launch", "demo", "hub", "data",
    "models", "training", "run", "report", "api", "", "cli", "__main__",
)  # fmt: skip
"""Each may import those before it; `""` is `fmstune` itself."""

INSIDE = {
    "config": ("methods", "check", "schema", "paths", "rules", "load", "inspect"),
    "delivery": ("journal", "shipping"),
    "data": ("files", "rows", "rendering", "tokens"),
}
"""As far as the folders of a room have an order."""

MOST_LINES, FEWEST_LINES = 350, 30
LONG: dict[str, str] = {}
"""Files of more lines, and why a reader would accept that."""
SHORT = {
    "fmstune.__main__": "what `python -m` wants",
    "fmstune._version": "the build reads it",
    "fmstune.cli.panels": "of all groups of commands",
    "fmstune.training.callbacks.resumed_steps": "one fault of transformers",
    "fmstune.layout": "names that several rooms share",
    "fmstune.system.cgroups": "memory and processors ask it",
    "fmstune.config.paths.hub": "asked by rooms that know no hub",
    "fmstune.delivery.journal.damaged": "of the journal and the ledgers",
    "fmstune.delivery.shipping.waiting": "of two files that need nothing else of each other",
    "fmstune.system.files": "of many rooms",
    "fmstune.trackers.aim.media": "what Aim shows besides numbers",
    "fmstune.trackers.wandb.media": "what W&B shows besides numbers",
    "fmstune.models.gguf": "one kind of file",
    "fmstune.training.trainers.all_rows": "one mixin of a trainer a file",
}
"""Files of fewer lines, and why they are files all the same. A method is a file, however short."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str) -> set[str]:
    """The modules of fmstune that a module imports anywhere: at its head, in functions, and for types."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            for name in node.names:
                inside = f"{node.module}.{name.name}"
                found.add(inside if inside in FILES else node.module or "")
    return {each for each in found if each in FILES} - {module}


@functools.cache
def graph() -> dict[str, set[str]]:
    """The modules that each module imports."""
    return {module: imports(module) for module in FILES}


def room(module: str) -> str:
    return [*module.split("."), ""][1]


def test_every_folder_says_in_a_sentence_what_it_is() -> None:
    for folder in {path.parent for path in FILES.values()}:
        head = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert head, folder
        assert head.split("\n\n")[0].count(". ") == 0, folder


def test_imports_only_go_down_the_list_of_rooms() -> None:
    wrong = [
        f"{module} → {needed}"
        for module, all_needed in graph().items()
        for needed in all_needed
        if ROOMS.index(room(needed)) > ROOMS.index(room(module))
    ]
    assert not wrong


def test_imports_go_down_inside_the_rooms_too() -> None:
    wrong = []
    for of, order in INSIDE.items():
        for module, all_needed in graph().items():
            for needed in all_needed:
                ours, theirs = ([*name.split("."), "", ""][2] for name in (module, needed))
                if room(module) == room(needed) == of and ours in order and theirs in order:
                    wrong += [f"{module} → {needed}"] * (order.index(theirs) > order.index(ours))
    assert not wrong


def test_a_file_is_neither_long_nor_tiny() -> None:
    for module, path in FILES.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MOST_LINES or module in LONG, (
            f"{module} has {lines} lines: which second subject has moved in?"
        )
        if path.name != "__init__.py" and ".methods." not in module:
            assert lines >= FEWEST_LINES or module in SHORT, (
                f"{module} has {lines} lines, and no reason for it"
            )


def tree() -> str:
    """README's map: each folder with the sentence that it says of itself."""
    lines = []
    for module, path in FILES.items():
        if path.name == "__init__.py" and path.parent != PACKAGE:
            head = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            depth = module.count(".") - 1
            name = f"{'  ' * depth}{path.parent.name}/"
            lines.append(f"{name:16}{' '.join(head.split(chr(10) * 2)[0].split())}")
    return "\n".join(lines)


def test_readme_has_the_map_of_the_rooms() -> None:
    assert f"```\n{tree()}\n```" in (ROOT / "README.md").read_text(encoding="utf-8"), tree()


def knots() -> Iterator[list[str]]:
    """Modules that need each other, directly or by way of others."""
    reached: dict[str, set[str]] = {}
    for module in graph():
        seen: set[str] = set()
        left = [module]
        while left:
            new = graph()[left.pop()] - seen
            seen |= new
            left += new
        reached[module] = seen
    for module in graph():
        if module in reached[module]:
            yield sorted(each for each in reached[module] if module in reached[each])


def test_no_two_files_need_each_other() -> None:
    assert list(knots()) == []
