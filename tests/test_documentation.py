"""The documentation names tests that there are: every path, and every case in a table's cells.

A table's column whose head names a test file lists cases of that file in brackets, or tests in backticks.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import collected as run
import pytest

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TABLES = (ROOT / "README.md", ROOT / "docs" / "pipelines.md")
FAMILIES = "tests/pipelines/test_families_end_to_end.py"
_FILE = re.compile(r"tests/[\w/]+\.py")


def tables(page: Path) -> Iterator[list[list[str]]]:
    """Yield each table's rows, the head first, without the line of dashes."""
    for block in re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), re.MULTILINE):
        lines = [line for line in block.splitlines() if not re.fullmatch(r"[|\-: ]+", line)]
        yield [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def named_cases(page: Path) -> set[tuple[str, str]]:
    """Return (file, case or test) for every one that a table of the page names."""
    found = set()
    for head, *rows in tables(page):
        files = [_FILE.search(cell) for cell in head]
        for row in rows:
            for file, cell in zip(files, row, strict=True):
                names = re.findall(r"\[([^\]]+)\]|`(test_\w+)`", cell) if file else []
                found |= {(file[0], case or test) for case, test in names if file}
    return found


@pytest.fixture(scope="module")
def collected(pytestconfig: pytest.Config) -> dict[str, set[str]]:
    """Return what pytest collects from the files that tables name: file -> its tests and their cases."""
    files = sorted({file for page in TABLES for file, _ in named_cases(page)})
    names = pytestconfig.stash[run.NAMES]
    if not {name.partition("::")[0] for name in names}.issuperset(files):  # a run of some files alone
        names = frozenset(listed(files))
    found: dict[str, set[str]] = {file: set() for file in files}
    for name in names:
        file, _, rest = name.partition("::")
        test, _, case = rest.partition("[")
        if file in found:
            found[file] |= {test, case.removesuffix("]")}
    return found


def listed(files: list[str]) -> list[str]:
    """Return the names of the tests in `files`, as pytest collects them."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout.splitlines()


def test_every_test_that_a_table_names_is_collected(collected: dict[str, set[str]]) -> None:
    named = {item for page in TABLES for item in named_cases(page)}
    assert len(named) > 60
    assert sorted(f"{file} [{case}]" for file, case in named if case not in collected[file]) == []


def test_the_page_on_pipelines_names_every_case_of_the_engines(collected: dict[str, set[str]]) -> None:
    named = {case for file, case in named_cases(ROOT / "docs" / "pipelines.md") if file == FAMILIES}
    cases = {case for case in collected[FAMILIES] if case and not case.startswith("test_")}
    assert sorted(cases - named) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_file_that_a_page_names_is_there(page: Path) -> None:
    named = set(_FILE.findall(page.read_text(encoding="utf-8")))
    assert sorted(file for file in named if not (ROOT / file).is_file()) == []
