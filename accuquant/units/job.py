"""What a worker is told once: what to open, and how to compute so that its figures are everybody's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from accuquant.errors import ClusterError
from accuquant.networks.device import repeatable
from accuquant.networks.network import model_hash

from .agreement import differences, facts_here
from .travelling import Roots


@dataclass(frozen=True)
class Job:
    """What units of one command compute with.

    `open` makes the networks on a device; it travels, so it holds paths and options, and no weights where
    these are files. `hashes` are those of the networks' weights, `threads` how many torch computes with:
    sums of several threads have other bits. `sees` are folders that every worker has to see, each with the
    name and the content of a file in it.
    """

    open: Callable[[str], Roots]
    hashes: Mapping[str, str]
    device: str = "cpu"
    tf32: bool = False
    threads: int = field(default_factory=torch.get_num_threads)
    facts: Mapping[str, str] = field(default_factory=facts_here)
    sees: Mapping[str, bytes] = field(default_factory=dict)


def no_networks(_device: str) -> Roots:
    """Open nothing: what `open` is where units need files alone."""
    return {}


def check_facts(facts: Mapping[str, str], node: str) -> None:
    """Raise ClusterError, which names the node, where this process runs with other versions."""
    differing = differences(facts_here(), facts)
    if differing:
        raise _refused(
            node, differing, "the versions of the process that hands out the work",
            "Install the same packages on every node, or use one container image",
        )  # fmt: skip


@contextmanager
def opened(job: Job, node: str, device: str) -> Iterator[Roots]:
    """Open what `job` names on `device`, and compute as it says while the block runs.

    Raises ClusterError, which names the node, where the files are others, or not there.
    """
    _check_folders(job, node)
    torch.set_num_threads(job.threads)
    with repeatable(torch.device(device), tf32=job.tf32):
        roots = job.open(device)
        for name, expected in job.hashes.items():
            found = model_hash(roots[name])
            if found != expected:
                raise _refused(
                    node, f"other files of the model: the {name}'s weights have the hash {found[:12]}",
                    f"{expected[:12]}, as in the process that hands out the work",
                    "Copy the model's folder to that node again, or put it on a disk that all nodes share",
                )  # fmt: skip
        yield roots


def _check_folders(job: Job, node: str) -> None:
    for path, content in job.sees.items():
        if not Path(path).is_file() or Path(path).read_bytes() != content:
            raise _refused(
                node, f"no '{path}' there, or another one",
                "the folder that the command works in",
                "Put the output on a disk that all nodes share, under the same path",
            )  # fmt: skip


def _refused(node: str, got: str, expected: str, remedy: str) -> ClusterError:
    return ClusterError(f"worker on {node}", got=got, expected=expected, remedy=remedy)
