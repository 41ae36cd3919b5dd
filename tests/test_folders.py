"""The package's folders: imports only go down the list of folders, and no two files import each other."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fmstune"

FOLDERS = (
    "errors", "layout", "_version", "secrets", "text", "access", "user_code", "console",
    "requirements", "transformers_compat", "peft_compat", "config", "system", "trackers", "delivery",
    "testing", "resources", "launch", "demo", "hub", "data", "models", "training", "run", "report",
    "api", "", "cli", "__main__",
)  # fmt: skip
"""Each may import those before it; `""` is `fmstune` itself."""

INSIDE = {
    "config": ("methods", "check", "schema", "paths", "rules", "load", "inspect"),
    "delivery": ("journal", "shipping"),
    "data": ("files", "rows", "rendering", "tokens"),
}
"""The order of the files and folders inside a folder, where there is one."""

MOST_LINES, FEWEST_LINES = 350, 30
LONG: dict[str, str] = {}
"""Files with more lines, and why a reader would accept that."""
SHORT = {
    "fmstune.__main__": "required by `python -m`",
    "fmstune._version": "the build reads it",
    "fmstune.cli.panels": "shared by all command groups",
    "fmstune.training.callbacks.resumed_steps": "works around one bug in transformers",
    "fmstune.layout": "names that several folders share",
    "fmstune.system.cgroups": "used for memory and processors",
    "fmstune.config.paths.hub": "used by folders that may not import the Hub's",
    "fmstune.delivery.journal.damaged": "used by the journal and the ledgers",
    "fmstune.delivery.shipping.waiting": "shared by two files that share nothing else",
    "fmstune.system.files": "used by many folders",
    "fmstune.trackers.aim.media": "media types of Aim",
    "fmstune.trackers.wandb.media": "media types of W&B",
    "fmstune.models.gguf": "one kind of file",
    "fmstune.training.trainers.all_rows": "one trainer mixin per file",
}
"""Files with fewer lines, and why they are files nevertheless. A method is a file, however short."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str) -> set[str]:
    """The modules of fmstune that a module imports anywhere: at module level, in functions, and for types."""
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


def folder_of(module: str) -> str:
    return [*module.split("."), ""][1]


def test_every_folder_describes_itself_in_one_sentence() -> None:
    for folder in {path.parent for path in FILES.values()}:
        head = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert head, folder
        assert head.split("\n\n")[0].count(". ") == 0, folder


def test_imports_only_go_down_the_list_of_folders() -> None:
    wrong = [
        f"{module} → {needed}"
        for module, all_needed in graph().items()
        for needed in all_needed
        if FOLDERS.index(folder_of(needed)) > FOLDERS.index(folder_of(module))
    ]
    assert not wrong


def test_imports_go_down_inside_the_folders_too() -> None:
    wrong = []
    for of, order in INSIDE.items():
        for module, all_needed in graph().items():
            for needed in all_needed:
                ours, theirs = ([*name.split("."), "", ""][2] for name in (module, needed))
                if folder_of(module) == folder_of(needed) == of and ours in order and theirs in order:
                    wrong += [f"{module} → {needed}"] * (order.index(theirs) > order.index(ours))
    assert not wrong


def test_a_file_is_neither_long_nor_tiny() -> None:
    for module, path in FILES.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MOST_LINES or module in LONG, (
            f"{module} has {lines} lines: which second subject can move to another file?"
        )
        if path.name != "__init__.py" and ".methods." not in module:
            assert lines >= FEWEST_LINES or module in SHORT, (
                f"{module} has {lines} lines, without a reason in SHORT"
            )


def tree() -> str:
    """README's map: each folder with the first sentence of its docstring."""
    lines = []
    for module, path in FILES.items():
        if path.name == "__init__.py" and path.parent != PACKAGE:
            head = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            depth = module.count(".") - 1
            name = f"{'  ' * depth}{path.parent.name}/"
            lines.append(f"{name:16}{' '.join(head.split(chr(10) * 2)[0].split())}")
    return "\n".join(lines)


def test_readme_has_the_map_of_the_folders() -> None:
    assert f"```\n{tree()}\n```" in (ROOT / "README.md").read_text(encoding="utf-8"), tree()


def cycles() -> Iterator[list[str]]:
    """Modules that import each other, directly or through others."""
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


def test_no_two_files_import_each_other() -> None:
    assert list(cycles()) == []
