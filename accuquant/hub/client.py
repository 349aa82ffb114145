"""The Hub's own client, and its refusals in one line."""

from __future__ import annotations

from typing import Any

from accuquant.errors import EngineError, MissingDependencyError


def client() -> Any:
    """Import huggingface_hub; raise MissingDependencyError where it is not installed."""
    try:
        import huggingface_hub
    except ImportError as fault:
        raise MissingDependencyError(
            "huggingface_hub",
            got="no such package",
            expected="the client of the Hub",
            remedy="pip install huggingface_hub",
        ) from fault
    return huggingface_hub


def refused(repo_id: str, fault: Exception, remedy: str) -> EngineError:
    """Return what the Hub answered as one error of ours."""
    lines = [line for line in str(fault).splitlines() if line.strip()]
    return EngineError(
        f"Hub repository '{repo_id}'",
        got=f"{type(fault).__name__}: {lines[0][:200] if lines else ''}",
        expected="a repository that can be reached",
        remedy=remedy,
    )
