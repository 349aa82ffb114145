"""What every module of tests that starts Ray is marked with."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest

RAY = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs accuquant[cluster]"),
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
    # of sockets and files that ray itself leaves to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
