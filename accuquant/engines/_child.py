"""The process that compiles: `python -m accuquant.engines._child LIBRARY REQUEST.json PARENT`.

PARENT is the process that waits for it, and with which it ends; stdin is a pipe that only closes then.
It writes the engine and the log to the files that the request names, and one JSON object a line to
stdout: `{"percent": 7}`, then `{"finished": true}` or `{"error": {...}}`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import IO, Any

from accuquant.engines._bound import die_with_parent
from accuquant.errors import AccuQuantError


def main() -> None:
    """Compile what the request asks for, and report on stdout."""
    die_with_parent(int(sys.argv[3]))
    library, request = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    channel = _claim_stdout()

    def report(event: dict[str, Any]) -> None:
        channel.write(json.dumps(event) + "\n")
        channel.flush()

    from accuquant.engines._compiler import compile_request

    try:
        compile_request(library, request, report)
    except AccuQuantError as error:
        report({"error": _described(error)})
    except OSError as error:
        report({"error": _described_os_error(error)})
    else:
        report({"finished": True})


def _claim_stdout() -> IO[str]:
    """Return the parent's pipe; whatever else a library prints goes to stderr."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _described(error: AccuQuantError) -> dict[str, str]:
    return {
        "kind": type(error).__name__,
        "subject": error.subject,
        "got": error.got,
        "expected": error.expected,
        "remedy": error.remedy,
    }


def _described_os_error(error: OSError) -> dict[str, Any]:
    return {
        "kind": "OSError",
        "errno": error.errno,
        "strerror": error.strerror or str(error),
        "filename": error.filename,
    }


if __name__ == "__main__":
    main()
