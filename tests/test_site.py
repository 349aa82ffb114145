"""The documentation hangs together: pages are in the site, links lead somewhere, names are there.

`make docs` checks the same with mkdocs; these tests need nothing but the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import accuquant

ROOT = Path(__file__).parents[1]
CONFIGURATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
#: File at the root -> its page in the site, as mkdocs_hooks.py has it.
AT_THE_ROOT = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
NOTES = sorted((ROOT / "accuquant" / "data").rglob("README.md"))
SOURCE_FOLDERS = ("accuquant", "export", "runtime", "tests", "benchmarks", "docker")
PAGES = (*(ROOT / name for name in AT_THE_ROOT), *sorted((ROOT / "docs").glob("*.md")))
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```|^(?: {4}|\t).*?$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_URL = re.compile(r"https?://[^\s)>\"'`]+")
_SOURCE = re.compile(
    r"(?<![\w/.-])(?:accuquant|export|runtime|tests|benchmarks|docker|docs|requirements)/[\w./-]*\.\w+"
)
_FILE_IN_CODE = re.compile(r"`((?:[\w-]+/)*[\w-]+\.(?:py|toml|sh))`")


def links(page: Path) -> Iterator[str]:
    """Yield where the links of a page lead, but for those to other hosts."""
    for target in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8"))):
        if not _URL.match(target):
            yield target


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as Python-Markdown and repositories' viewers make them."""
    headings = re.findall(r"^#+ +(.+?) *$", _CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"\s+", "-", heading) for heading in plain}


def test_the_navigation_lists_every_page_once() -> None:
    listed = re.findall(r": (\S+\.md)$", CONFIGURATION.partition("\nnav:\n")[2], re.MULTILINE)
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} | set(AT_THE_ROOT.values())
    assert len(listed) == len(set(listed)) > 10
    assert set(listed) == pages


def test_the_hook_carries_the_pages_of_the_root() -> None:
    hook = (ROOT / "mkdocs_hooks.py").read_text(encoding="utf-8")
    assert dict(re.findall(r'"(\w+\.md)": "(\w+\.md)"', hook)) == AT_THE_ROOT


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_within_the_repository_resolves(page: Path) -> None:
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page.name == "CHANGELOG.md":  # speaks of what was, too
        return
    named = set(_SOURCE.findall(text))
    missing = {name for name in named if not (ROOT / name).exists() and not (page.parent / name).exists()}
    known = {path.name for folder in ("accuquant", "benchmarks") for path in files(folder)}
    for name in _FILE_IN_CODE.findall(text):
        there = (ROOT / name).exists() or (ROOT / "accuquant" / name).exists()
        if not there and ("/" in name or name not in known):
            missing.add(name)
    assert sorted(missing) == []


def test_every_bare_name_of_a_file_is_that_of_a_file() -> None:
    """Pages say "capture.py and starts.py" after a path."""
    there = {path.name for folder in SOURCE_FOLDERS for path in files(folder)} | {"utils.py"}  # there is none
    missing = {
        f"{page.relative_to(ROOT)}: {name}"
        for page in (*PAGES, *NOTES)
        if page.name != "CHANGELOG.md"
        for name in re.findall(r"\b\w+\.py\b", page.read_text(encoding="utf-8"))
        if name not in there
    }
    assert sorted(missing) == []


@pytest.mark.parametrize("note", NOTES, ids=lambda note: note.parent.name)
def test_every_file_that_a_note_beside_data_names_is_there(note: Path) -> None:
    named = _SOURCE.findall(note.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_module_that_a_message_names_is_there() -> None:
    named = {
        (str(path.relative_to(ROOT)), name)
        for folder in ("accuquant", "export", "runtime")
        for path in files(folder)
        if path.suffix == ".py"
        for name in _SOURCE.findall(path.read_text(encoding="utf-8"))
        if name.endswith((".py", ".md"))
    }
    assert sorted(f"{path}: {name}" for path, name in named if not (ROOT / name).exists()) == []


def test_the_page_on_the_api_shows_the_face() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shown = re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    assert sorted(shown) == sorted(f"{home}.{name}" for name, home in accuquant._HOMES.items())


def test_the_site_loads_nothing_from_elsewhere() -> None:
    assert _URL.findall(CONFIGURATION) == []
    assert "font: false" in CONFIGURATION
    assert "mermaid" not in CONFIGURATION


def files(folder: str) -> Iterator[Path]:
    """Yield the files below a folder of the repository, those behind accuquant's symlinks too."""
    for path in (ROOT / folder).iterdir():
        if path.is_dir() and path.name not in {"__pycache__", "data"}:
            yield from files(str(path.relative_to(ROOT)))
        elif path.is_file():
            yield path
