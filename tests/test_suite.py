"""Tests of the tests: none of them vanishes with its module."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parent


def test_no_module_is_skipped_as_a_whole() -> None:
    """A module-level importorskip hides every test of a file behind one skip, those that need nothing too."""
    whole = []
    for path in sorted(TESTS.rglob("test_*.py")):
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(statement, ast.FunctionDef | ast.ClassDef):
                calls = {node.attr for node in ast.walk(statement) if isinstance(node, ast.Attribute)}
                whole += [path.name] if calls & {"importorskip", "skip"} else []
    assert whole == []
