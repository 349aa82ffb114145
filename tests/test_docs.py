"""The code in the documentation runs, with fewer steps and images than it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
#: What the documentation says -> what is run instead; each must be there.
QUICK = {
    "steps=50, group_size=5, num_trajectories=64": (
        "steps=4, group_size=2, num_trajectories=8, iterations=1, shared_iterations=1, refine=False"
    ),
    "steps=50": "steps=4",
}
QUICK_MARKDOWN = QUICK | {"num_images=64": "num_images=4", "num_images=16": "num_images=4"}


def quick(code: str, replacements: dict[str, str]) -> str:
    for shown, run in replacements.items():
        assert shown in code, shown
        code = code.replace(shown, run)
    return code


@pytest.mark.slow
def test_the_python_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(), re.DOTALL)
    first = blocks[0].splitlines()
    assert len([line for line in first if line and not line.startswith(("from", "import"))]) <= 10
    namespace: dict[str, object] = {}
    exec(compile(quick("\n".join(blocks), QUICK_MARKDOWN), "python.md", "exec"), namespace)
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "out" / "README.md").read_text().count("PSNR") == 1
    assert (tmp_path / "int8.onnx").stat().st_size < (tmp_path / "float.onnx").stat().st_size / 2
    assert namespace["image"].size == (32, 32)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((DOCS / "int8.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    namespace: dict[str, object] = {}
    exec(compile(quick("\n".join(cells), QUICK), "int8.ipynb", "exec"), namespace)
    assert namespace["psnr"].shape == (4,)  # type: ignore[attr-defined]
    assert (namespace["psnr"] > 15).all()  # type: ignore[operator,attr-defined,union-attr]
