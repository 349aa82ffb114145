"""Whatever an .onnx holds: it is refused with an AccuQuantError or it works, and nothing else happens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fuzz.onnx_mutations import mutated

from accuquant.errors import AccuQuantError, EngineError
from accuquant.export import check_model, write_onnx
from accuquant.graph.soundness import check_sound
from accuquant.observation.observe_onnx import observe_onnx
from accuquant.runtime.open_runner import open_runner

_BATCH = 250


def attempt(seed: int, folder: Path, *, engines: bool) -> int:
    """Put one damaged file through every door; return how many refused it."""
    path = folder / "m.onnx"
    path.write_bytes(mutated(seed))
    refused = 0
    for door in (check_model, export, open_in_engines if engines else look):
        said = refusal(door, path)
        refused += said is not None
        assert said is None or (len(said) < 5000 and said.replace("\n", " ").isprintable()), said
    return refused


def refusal(door: Callable[[Path], object], path: Path) -> str | None:
    """Return what a door says, None where it lets the file pass; any other exception is a failure."""
    try:
        door(path)
    except AccuQuantError as fault:
        return str(fault)
    return None


def export(path: Path) -> None:
    with np.errstate(all="ignore"):
        write_onnx(path, observe_onnx(path, calls=1), path.with_name("int8.onnx"))


def look(path: Path) -> None:
    check_sound(path, error=EngineError)


def open_in_engines(path: Path) -> None:
    """Load the file in every engine; the first refusal ends it."""
    for engine in ("onnxruntime", "openvino"):
        with open_runner(path, engine):
            pass


def test_a_hundred_damaged_files_are_refused_or_work(tmp_path: Path) -> None:
    refused = [attempt(seed, tmp_path, engines=False) for seed in range(100)]
    assert sum(count > 0 for count in refused) > 50
    assert refused.count(0) > 3, "some damage is harmless, else nothing behind the checks is tried"


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 3000, _BATCH))
def test_no_damaged_file_ends_a_process_that_loads_it(tmp_path: Path, start: int) -> None:
    """In a child process, because an engine that crashes takes its process along."""
    command = [sys.executable, "-c", _CHILD, str(start), str(start + _BATCH), str(tmp_path)]
    paths = str(Path(__file__).parents[1])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, check=False, env=_environment(paths)
    )
    assert done.returncode == 0, f"seed {done.stdout.split()[-1]}: {done.returncode} {done.stderr[-3000:]}"


def _environment(path: str) -> dict[str, str]:
    import os

    given = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{given}" if given else path}


_CHILD = """
import sys
from pathlib import Path
from fuzz.test_fuzz_onnx import attempt

start, stop, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
for seed in range(start, stop):
    print(seed, flush=True)
    attempt(seed, folder, engines=True)
"""
