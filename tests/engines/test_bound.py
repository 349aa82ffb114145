"""The compiling process ends with the process that waits for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from accuquant.engines import _child

CHILD = """
import os, sys, time
sys.platform = {platform!r}
from accuquant.engines._bound import die_with_parent
die_with_parent(int(sys.argv[1]))
print(os.getpid(), flush=True)
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], stdin=subprocess.PIPE).wait()
"""


@pytest.mark.parametrize("platform", [sys.platform, "other"])
def test_a_killed_parent_takes_its_child_along(platform: str) -> None:
    command = [sys.executable, "-c", PARENT, CHILD.format(platform=platform)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline()) > 0, "the child runs"
        parent.kill()
        # the child holds the pipe's other end, which closes when it is gone: 60 seconds later if nobody cares
        assert parent.communicate(timeout=30)[0] == b""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the kernel of Linux")
def test_a_child_whose_parent_was_gone_before_does_not_begin() -> None:
    code = CHILD.format(platform=sys.platform)
    command = [sys.executable, "-c", code, "1234567890"]
    result = subprocess.run(command, input=b"", capture_output=True, check=False)
    assert (result.returncode, result.stdout) == (1, b"")


def test_the_child_binds_itself_before_anything_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bound: list[int] = []

    def bind(parent: int) -> None:
        bound.append(parent)
        raise InterruptedError

    monkeypatch.setattr(_child, "die_with_parent", bind)
    monkeypatch.setattr(sys, "argv", ["_child", "tensorrt_rtx", str(tmp_path / "absent.json"), "42"])
    with pytest.raises(InterruptedError):
        _child.main()
    assert bound == [42]
