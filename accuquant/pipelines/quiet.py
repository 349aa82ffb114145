"""Keep diffusers and transformers from printing where AccuQuant shows its own progress and errors."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide the progress bars of loading, and what the libraries say about packages that are not needed."""
    with ExitStack() as stack:
        for library in ("diffusers", "transformers"):
            if importlib.util.find_spec(library) is None:
                continue
            logging: Any = importlib.import_module(f"{library}.utils.logging")
            stack.callback(logging.set_verbosity, logging.get_verbosity())
            if logging.is_progress_bar_enabled():
                stack.callback(logging.enable_progress_bar)
            logging.disable_progress_bar()
            logging.set_verbosity_error()
        yield
