"""Compile an ONNX model into a TensorRT engine, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accuquant
from accuquant._util.files import atomic_write
from accuquant._util.progress import Progress, Silent
from accuquant._util.scratch import scratch_folder
from accuquant.engines.backend import Backend, resolve_backend
from accuquant.engines.options import BuildOptions
from accuquant.errors import EngineError

_REMEDY = "Run `accuquant check` on the model: it names what TensorRT cannot compile"


@dataclass(frozen=True)
class CompiledEngine:
    """A finished engine: its file, and what the compiler said.

    `log` holds every line of the builder's verbose log; with detailed profiling verbosity its last part
    describes every layer of the engine. `library` and `version` name what compiled it.
    """

    plan: Path
    log: tuple[str, ...]
    seconds: float
    library: str
    version: str


def compile_engine(
    model: Path, plan: Path, options: BuildOptions, *, progress: Progress | None = None
) -> CompiledEngine:
    """Compile the .onnx file `model` into the engine file `plan`, strongly typed.

    The compiler runs in a child process: where it crashes, this raises one EngineError. `plan` appears
    whole or not at all. Raises EngineError where TensorRT refuses the model or the target lacks its half
    type, UsageError for a profile that does not fit, MissingDependencyError without a TensorRT library,
    OSError where the disk is full.
    """
    # loads onnx, for which `accuquant build --help` must not wait
    from accuquant.engines.half_types import check_half_types
    from accuquant.engines.known_storage import with_known_storage

    backend = resolve_backend(options.backend)
    check_half_types(Path(model), options.target)
    progress = progress or Silent()
    began = time.monotonic()
    with scratch_folder("build") as work, atomic_write(plan) as written:
        compiled, changes = with_known_storage(Path(model), work)
        request = _request(Path(model), compiled, written, options, work / "log")
        (work / "request.json").write_text(json.dumps(request), encoding="utf-8")
        progress.stage(f"compiling {Path(model).name} for {options.target}", 100)
        for change in changes:
            progress.message(change)
        _run_child(work, Path(model), backend, progress)
        log = tuple((work / "log").read_text(encoding="utf-8").splitlines())
    return CompiledEngine(Path(plan), log, time.monotonic() - began, backend.name, backend.version)


def _request(model: Path, compiled: Path, plan: Path, options: BuildOptions, log: Path) -> dict[str, Any]:
    return {
        "model": os.fspath(model.resolve()),
        "compiled": os.fspath(compiled.resolve()),
        "plan": os.fspath(plan.resolve()),
        "log": os.fspath(log),
        "timing_cache": os.fspath(options.timing_cache.resolve()) if options.timing_cache else None,
        **options.to_dict(),
    }


def _run_child(work: Path, model: Path, backend: Backend, progress: Progress) -> None:
    """Run the compiler on work/request.json and raise what it reports."""
    request = str(work / "request.json")
    command = [sys.executable, "-m", "accuquant.engines._child", backend.name, request, str(os.getpid())]
    with (
        open(work / "stderr", "wb") as stderr,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # never written to: its end says that this process is gone
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=_environment(backend),
        ) as child,
    ):
        try:
            finished = _follow(_events(child), progress)
            code = child.wait()
        finally:
            child.kill()
    if not finished:
        raise _crashed(model, code, work)


def _environment(backend: Backend) -> dict[str, str]:
    # The child has to find this very package, and Polygraphy reads the library's name from here.
    root = str(Path(accuquant.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "POLYGRAPHY_USE_TENSORRT_RTX": "1" if backend.name == "tensorrt_rtx" else "0",
    }


def _events(child: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    assert child.stdout is not None
    for line in child.stdout:
        yield json.loads(line)


def _follow(events: Iterator[dict[str, Any]], progress: Progress) -> bool:
    """Forward progress until the child says that it finished; raise the error that it sends."""
    shown = 0
    for event in events:
        if "percent" in event:
            progress.advance(event["percent"] - shown)
            shown = event["percent"]
        elif "error" in event:
            raise _received(event["error"])
        elif "finished" in event:
            progress.advance(100 - shown)
            return True
    return False


def _received(error: dict[str, Any]) -> Exception:
    import accuquant.errors

    if error["kind"] == "OSError":
        return OSError(error["errno"], error["strerror"], error["filename"])
    kind = getattr(accuquant.errors, error["kind"])
    made: Exception = kind(
        error["subject"], got=error["got"], expected=error["expected"], remedy=error["remedy"]
    )
    return made


def _crashed(model: Path, code: int, work: Path) -> EngineError:
    how = f"exit code {code}"
    remedy = _REMEDY
    if code < 0:
        how = signal.strsignal(-code) or f"signal {-code}"
        if -code == signal.SIGKILL:
            remedy = "If memory ran out, close other programs or take a smaller batch; else run it again"
    return EngineError(
        f"model '{model}'",
        got=f"a crash of the compiler ({how}), last words: {_last_words(work)}",
        expected="a finished engine",
        remedy=remedy,
    )


def _last_words(work: Path) -> str:
    for name in ("stderr", "log"):
        path = work / name
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines:
            return f"'{lines[-1][:200]}'"
    return "none"
