"""`import accuquant`: the names that scripts rely on, and what they cost."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import accuquant

ROOT = Path(__file__).parents[1]
NAMES = {
    "AccuQuantError",
    "CalibrationSettings",
    "EngineControlNet",
    "EngineUNet",
    "EvaluationSettings",
    "ExportOptions",
    "LoopProfile",
    "Recipe",
    "Task",
    "calibrate",
    "calibrate_decoder",
    "check_model",
    "engine_parts",
    "estimate",
    "evaluate",
    "export_onnx",
    "export_pipeline",
    "feed_forward_source",
    "load_source",
    "observe_onnx",
    "profiled",
    "sample",
    "verify",
    "write_html",
}
HEAVY = {"numpy", "torch", "onnx", "onnx_ir", "diffusers", "click", "PIL", "safetensors"}


def python(code: str) -> str:
    """Return what `code` prints in a Python of its own."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_face_offers_these_names_and_no_others() -> None:
    assert set(accuquant.__all__) - {"__version__"} == NAMES
    assert set(accuquant._HOMES) == NAMES
    assert set(dir(accuquant)) >= NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_name_is_what_its_module_calls_so(name: str) -> None:
    found = getattr(accuquant, name)
    assert found is getattr(importlib.import_module(accuquant._HOMES[name]), name)
    assert found.__name__ == name
    assert found.__module__ == accuquant._HOMES[name]  # defined there, not passed on


def test_no_module_can_take_the_place_of_a_name() -> None:
    modules = {module.name for module in pkgutil.iter_modules(accuquant.__path__)}
    assert {"export", "runtime", "recipe"} <= modules
    assert sorted(modules & NAMES) == []


def test_type_checkers_see_every_name_where_it_lives() -> None:
    tree = ast.parse(Path(accuquant.__file__).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in guarded.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == accuquant._HOMES


def test_importing_the_package_loads_nothing_else() -> None:
    printed = python("import accuquant, sys; print(*{name.split('.')[0] for name in sys.modules})")
    assert HEAVY & set(printed.split()) == set()


def test_what_works_without_torch_does_not_load_it() -> None:
    names = "AccuQuantError, Recipe, Task, check_model, observe_onnx, sample"
    code = f"import sys; from accuquant import {names}; print('torch' in sys.modules)"
    assert python(code).strip() == "False"


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'accuquant' has no attribute 'quantise'"):
        accuquant.quantise  # type: ignore[attr-defined]  # noqa: B018


def test_the_package_itself_never_asks_the_face() -> None:
    modules = {module.name for module in pkgutil.iter_modules(accuquant.__path__)}
    asked = set()
    for folder in ("accuquant", "export", "runtime"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            asked |= {
                alias.name
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom) and node.module == "accuquant" and not node.level
                for alias in node.names
            }
            asked |= {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "accuquant"
            }
    assert asked - modules == {"__version__", "__file__"}
