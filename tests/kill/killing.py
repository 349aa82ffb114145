"""Run a command and kill it just before its n-th change of the file system."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

#: Counts what changes files below a folder, by the interpreter's own audit events; at number `at` the process
#: sends itself the signal. That meets every moment between two steps, which a clock would hardly.
_DRIVER = """
import os, sys
from accuquant.cli.main import main

folder, at, sent, *arguments = sys.argv[1:]
if arguments[0] == "calibrate":  # let it keep at every unit what it would keep every minute or so
    from accuquant.calibration import descent_state
    from accuquant.units import units

    descent_state.EVERY = units.EVERY = 0.0
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
count = 0

def below(value):
    if isinstance(value, (str, os.PathLike)):
        return os.path.abspath(value).startswith(folder)
    return isinstance(value, bytes) and os.fsdecode(value).startswith(folder)

def changes(event, values):
    if event == "open":
        mode = values[1] or ""
        writes = any(letter in mode for letter in "wax+") or values[2] & (os.O_WRONLY | os.O_RDWR)
        return bool(writes) and below(values[0])
    return event in CHANGES and any(map(below, values[:2]))

def watch(event, values):
    global count
    if changes(event, values):
        count += 1
        if count == int(at):
            os.kill(os.getpid(), int(sent))

sys.addaudithook(watch)
code = main(arguments)
print("changes:", count)
sys.exit(code)
"""


@dataclass(frozen=True)
class Ended:
    """How a run ended, and how often it changed the file system."""

    code: int
    output: str
    error: str

    @property
    def changes(self) -> int:
        """The number that the driver counted."""
        return int(self.output.rsplit("changes:", 1)[1])


class Room:
    """A folder in which commands run, with a place for temporary files beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.temporary = folder / "room", folder / "tmp"
        self.folder.mkdir()
        self.temporary.mkdir()

    def run(self, *arguments: str, kill_at: int = 0, sent: int = signal.SIGKILL) -> Ended:
        """Run `accuquant ARGUMENTS`; the signal `sent` comes before change number `kill_at`, 0 for none."""
        result = subprocess.run(
            [
                sys.executable,
                "-c",
                _DRIVER,
                str(self.folder.parent),
                str(kill_at),
                str(int(sent)),
                *arguments,
            ],
            cwd=self.folder,
            env={**os.environ, "TMPDIR": str(self.temporary), "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        return Ended(result.returncode, result.stdout, result.stderr)

    def finish(self, *arguments: str) -> Ended:
        """Run a command to its end."""
        ended = self.run(*arguments)
        assert ended.code == 0, ended.error
        return ended

    def names(self) -> set[str]:
        """Return what lies in the folder, hidden files too."""
        return set(os.listdir(self.folder))

    def leftovers(self) -> list[str]:
        """Return what is temporary, anywhere; engines' own files in the place for those are not ours."""
        found = [*self.temporary.glob("*accuquant*"), *self.temporary.glob(".*accuquant*")]
        found += self.folder.rglob(".*")
        return sorted(str(path) for path in found)


def moments(changes: int, count: int, seed: int) -> list[tuple[int, int]]:
    """Draw `count` kills of a run with so many changes: (which change, signal), both signals in turn.

    The last ten changes, where the new takes the place of the old, are drawn as often as all others.
    """
    rng = random.Random(seed)
    last = max(1, changes - 10)
    drawn = [rng.randint(last, changes) if k % 2 else rng.randint(1, changes) for k in range(count)]
    return [(at, signal.SIGTERM if k % 4 >= 2 else signal.SIGKILL) for k, at in enumerate(drawn)]


def check_end(ended: Ended, sent: int) -> None:
    """Assert that the signal, and nothing else, ended the run; SIGTERM with a word."""
    if sent == signal.SIGKILL:
        assert ended.code == -signal.SIGKILL, ended.error
    else:
        assert ended.code == 143, ended.error
        assert "terminated, without leaving half a file" in ended.error
        assert "Traceback" not in ended.error
