"""Tests of the choice of the library."""

from __future__ import annotations

import importlib.util

import pytest

from accuquant.engines import backend as module
from accuquant.engines.backend import Backend, resolve_backend
from accuquant.errors import MissingDependencyError, UsageError


def install(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    """Make the libraries of `versions`, and no other, look installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: versions.get(name))
    monkeypatch.setattr(module, "_installed_version", versions.__getitem__)


def test_auto_prefers_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {"tensorrt": "11.4.0.106", "tensorrt_rtx": "1.7.1"})
    assert resolve_backend() == Backend("tensorrt", "11.4.0.106")
    assert resolve_backend("tensorrt_rtx").compiles_ahead
    assert not resolve_backend("tensorrt").compiles_ahead
    assert str(resolve_backend("tensorrt_rtx")) == "tensorrt_rtx 1.7.1"


def test_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {"tensorrt_rtx": "1.7.1"})
    assert resolve_backend().name == "tensorrt_rtx"
    with pytest.raises(MissingDependencyError, match=r"backend tensorrt: .*accuquant\[gpu\]"):
        resolve_backend("tensorrt")


def test_no_library_is_an_error_with_both_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {})
    with pytest.raises(MissingDependencyError, match=r"accuquant\[gpu\].*accuquant\[tensorrt-rtx\]"):
        resolve_backend()


@pytest.mark.parametrize("old", ["8.6.1", "10.11.0.33"])
def test_a_library_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch, old: str) -> None:
    install(monkeypatch, {"tensorrt": old})
    with pytest.raises(MissingDependencyError, match=r"version .*, expected 10.12 or newer"):
        resolve_backend()


def test_an_unknown_name_is_refused_with_the_list() -> None:
    with pytest.raises(UsageError, match="auto or tensorrt or tensorrt_rtx"):
        resolve_backend("trt")
