"""The house: imports go down, never up or in a circle; and what each floor may not know. 2 seconds."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

import hfmega

# Top to bottom; nothing imports a name further up. What stands on one line stands side by side.
FLOORS: Final = [
    ["__main__"],
    ["cli"],
    ["app"],
    ["launch"],
    ["study"],
    ["merging"],
    ["report"],
    ["evaluation"],
    ["data"],
    ["hub"],
    ["weights"],
    ["search", "models"],
    ["settings"],
    ["folder", "output"],
    ["phases"],
    ["rng"],
    ["errors"],
]
FLOOR: Final = {name: number for number, names in enumerate(FLOORS) for name in names}
PACKAGE: Final = Path(hfmega.__file__).parent


def modules() -> dict[str, ast.Module]:
    """Module (without `hfmega.`) to its syntax tree; `hfmega` itself is the public API above all floors."""
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]
    names = [path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for path in paths]
    return {
        name.removesuffix(".__init__"): ast.parse(path.read_text(encoding="utf-8"))
        for name, path in zip(names, paths, strict=True)
    }


MODULES: Final = modules()


def imported(tree: ast.Module) -> Iterator[str]:
    """The modules of hfmega that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "hfmega":
            within = node.module.removeprefix("hfmega").lstrip(".")
            for alias in node.names:
                name = f"{within}.{alias.name}".lstrip(".")
                yield name if name in MODULES else within
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("hfmega.") for a in node.names if a.name.startswith("hfmega."))


def test_every_module_has_a_floor() -> None:
    assert {name.split(".")[0] for name in MODULES} <= FLOOR.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    here = module.split(".")[0]
    for name in imported(MODULES[module]):
        there = name.split(".")[0]
        if there and there != here:
            assert FLOOR[there] > FLOOR[here], f"{module} imports {name}, which is not below it"


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {name: {i for i in imported(tree) if i} for name, tree in MODULES.items()}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_the_app_is_imported_by_nothing_and_the_ground_by_no_torch() -> None:
    for name, tree in MODULES.items():
        assert not any(i.split(".")[0] == "app" for i in imported(tree)) or name.startswith(("app", "cli"))
    ground = ["settings", "folder", "output", "phases", "rng", "errors"]
    for name in ground:
        words = {alias.name for node in ast.walk(MODULES[name]) if isinstance(node, ast.Import) for alias in node.names}
        assert not words & {"torch", "timm", "datasets", "huggingface_hub"}, name


@pytest.mark.parametrize(("module", "without"), [("hfmega.search.ga", "torch"), ("hfmega.settings", "torch"),
                                                 ("hfmega", "torch"), ("hfmega.cli", "torch")])  # fmt: skip
def test_what_needs_no_torch_imports_none(module: str, without: str) -> None:
    code = f"import sys, {module}; print({without!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


KEYS: Final = {"pretrained_cfg", "model_args", "label_names", "num_classes", "id2label"}


def test_above_models_nobody_reads_a_config_or_names_a_library() -> None:
    for name, tree in MODULES.items():
        if name.startswith("models"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                words = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                assert not any(w.split(".")[0] in ("timm", "transformers", "timm_library") for w in words), name
            read = node.slice if isinstance(node, ast.Subscript) else None
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".get") and node.args:
                read = node.args[0]
            assert not (isinstance(read, ast.Constant) and read.value in KEYS), name


def test_no_signature_carries_a_token() -> None:
    for name, tree in MODULES.items():
        arguments = [node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)]
        assert "token" not in arguments or name == "cli.options", name


def test_the_top_level_stays_a_page() -> None:
    assert len([entry for entry in PACKAGE.iterdir() if entry.name != "__pycache__"]) <= 20
