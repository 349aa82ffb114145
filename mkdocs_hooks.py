"""What mkdocs.yml cannot say: the pages at the repository's root are pages of the site too."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent
#: File at the root -> page of the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
_LINK = re.compile(r"(\]\()([^)#\s:]+)([)#])")


def on_files(files: Files, config: Any) -> Files:
    """Add the root's pages to those of docs/."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_LINK.sub(_from_root, text)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links from docs/ to the root's pages into links within the site."""
    return markdown if page.file.generated_by else _LINK.sub(_from_docs, markdown)


def _from_root(link: re.Match[str]) -> str:
    return link[1] + PAGES.get(link[2], link[2].removeprefix("docs/")) + link[3]


def _from_docs(link: re.Match[str]) -> str:
    target = posixpath.normpath(posixpath.join("docs", link[2]))
    return link[1] + PAGES.get(target, link[2]) + link[3]
