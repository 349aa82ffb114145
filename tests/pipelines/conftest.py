"""Exports of the families' cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from family_cases import Exported


@pytest.fixture(scope="session")
def exported_case(
    tiny_text_pipeline: Callable[[str], Path], picture_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Exported]:
    """Return a function that calibrates and exports a case of `family_cases`, once."""
    from family_cases import export_case, saved_pipeline

    made: dict[str, Exported] = {}

    def give(kind: str) -> Exported:
        if kind not in made:
            pipeline = tiny_text_pipeline(saved_pipeline(kind))
            made[kind] = export_case(kind, pipeline, picture_folder, tmp_path_factory.mktemp(kind))
        return made[kind]

    return give
