"""Names on the Hub: user/name, and user/name@revision."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from accuquant.errors import UsageError

_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub; `revision` is a branch, a tag or a commit, None the main branch."""

    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"

    @classmethod
    def find(cls, text: str, revision: str | None = None) -> Repository | None:
        """Read "user/name" or "user/name@revision"; None where `text` is a path, or names what is here.

        Raises UsageError for a revision that cannot be one, or where two are given.
        """
        name, at, pinned = text.partition("@")
        if _ID.fullmatch(name) is None or ".." in name or text.startswith(".") or Path(text).exists():
            return None
        if at and revision is not None and revision != pinned:
            raise _unclear(text, f"two revisions, {pinned!r} and {revision!r}", "one of them")
        chosen = pinned if at else revision
        if chosen is not None and (_REVISION.fullmatch(chosen) is None or ".." in chosen):
            raise _unclear(text, f"the revision {chosen!r}", "a branch, a tag or a commit")
        return cls(name, chosen)


def _unclear(text: str, got: str, expected: str) -> UsageError:
    remedy = "Write user/name@revision, for example with the commit that you looked at"
    return UsageError(f"Hub repository '{text}'", got=got, expected=expected, remedy=remedy)
