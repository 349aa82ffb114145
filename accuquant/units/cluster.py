"""Where the user wants units computed: in this process, by processes of this machine, or by a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from accuquant.errors import UsageError

from .units import SERIAL, Engine

if TYPE_CHECKING:
    from .job import Job
    from .travelling import Roots


@dataclass(frozen=True)
class Cluster:
    """So many `workers` on this machine, or in the Ray cluster at `address`, "auto" or HOST:PORT.

    A cluster that is joined gives one for each GPU, or each processor core, where `workers` is None.
    """

    workers: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if self.workers is None and self.address is None:
            raise UsageError(
                "cluster", got="neither workers nor an address", expected="one of them",
                remedy="Give Cluster(workers=2), or Cluster(address='auto')",
            )  # fmt: skip
        if self.workers is not None and self.workers < 1:
            raise UsageError(
                "--workers", got=str(self.workers), expected="1 or more",
                remedy="Leave it out to compute in one process",
            )  # fmt: skip


@contextmanager
def engine_of(
    cluster: Cluster | None, job: Callable[[], Job], roots: Roots, say: Callable[[str], None]
) -> Iterator[Engine]:
    """Give what computes units: this process where there is no `cluster`.

    `job` is what workers open, `roots` what this process has opened. Raises ModuleNotFoundError where ray is
    not installed, ClusterError where the cluster does not answer.
    """
    if cluster is None:
        yield SERIAL
        return
    from .ray_cluster import RayCluster

    with RayCluster(job(), roots, workers=cluster.workers, address=cluster.address, say=say) as engine:
        yield engine
