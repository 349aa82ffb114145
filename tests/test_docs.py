"""The code in the documentation runs, with fewer steps and images than it shows."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import onnx_ir
import pytest

import accuquant
from accuquant.bundled import FASHION_DDPM
from accuquant.export.read.trace import trace
from accuquant.pipelines.source import load_source

DOCS = Path(__file__).parent.parent / "docs"
#: What the documentation says -> what is run instead; each must be there.
QUICK = {
    "steps=50, group_size=5, num_trajectories=64": (
        "steps=4, group_size=2, num_trajectories=8, iterations=1, shared_iterations=1, refine=False"
    ),
    "steps=50": "steps=4",
}
QUICK_MARKDOWN = QUICK | {
    "num_images=64": "num_images=4",
    "num_images=16": "num_images=4",
    "num_images=50_000": "num_images=4",
}


def quick(code: str, replacements: dict[str, str]) -> str:
    for shown, run in replacements.items():
        assert shown in code, shown
        code = code.replace(shown, run)
    return code


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(), re.DOTALL)


def test_the_python_page_uses_the_face_and_nothing_behind_it() -> None:
    tree = ast.parse("\n".join(python_blocks()))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in imported if name.startswith("accuquant")} == {"accuquant"}
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "accuquant"
    }
    assert len(used) > 8
    assert sorted(used - set(accuquant.__all__)) == []


def test_the_python_page_names_the_whole_face() -> None:
    page = (DOCS / "python.md").read_text()
    assert sorted(name for name in accuquant._HOMES if name not in page) == []


@pytest.mark.slow
def test_the_python_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-ddpm").symlink_to(FASHION_DDPM)
    source = load_source(FASHION_DDPM)
    onnx_ir.save(trace(source.network, source.signature), "float.onnx")  # what somebody else exported
    blocks = python_blocks()
    first = blocks[0].splitlines()
    assert len([line for line in first if line and not line.startswith(("from", "import"))]) <= 10
    namespace: dict[str, Any] = {}
    exec(compile(quick("\n".join(blocks), QUICK_MARKDOWN), "python.md", "exec"), namespace)
    assert (tmp_path / "report.html").is_file()
    assert json.loads((tmp_path / "report.json").read_text())["fidelity"]
    assert namespace["images"].shape == (4, 32, 32, 1)
    assert (tmp_path / "int8.onnx").stat().st_size < (tmp_path / "float.onnx").stat().st_size / 2
    assert namespace["image"].size == (32, 32)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((DOCS / "int8.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    namespace: dict[str, Any] = {}
    exec(compile(quick("\n".join(cells), QUICK), "int8.ipynb", "exec"), namespace)
    assert namespace["psnr"].shape == (4,)
    assert (namespace["psnr"] > 15).all()
