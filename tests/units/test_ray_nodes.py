"""Units on the nodes of a Ray cluster: those that need a GPU where there is one, the others anywhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from ray_marks import RAY
from torch import nn

from accuquant.errors import ClusterError
from accuquant.networks.network import model_hash
from accuquant.units.job import Job
from accuquant.units.units import InMemory

pytestmark = RAY
UNITS = [str(k) for k in range(12)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Give three nodes, the last of which says that it has two GPUs: Ray believes it."""
    from ray.cluster_utils import Cluster as Nodes

    cluster = Nodes(
        initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1, num_gpus=0)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return nn.Linear(2, 2)


def job_of(network: nn.Module) -> Job:
    import cloudpickle

    # workers cannot import this module
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return Job(lambda _device: {"network": network}, {"network": model_hash(network)}, device="cuda")


def where(_unit: str) -> tuple[str, str]:
    """Return the node, and which GPUs the process may see."""
    import ray

    time.sleep(0.3)  # so that every worker has to take one
    return ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES", "")


def test_a_cluster_without_gpus_refuses_units_that_need_one(nodes: Any, network: nn.Module) -> None:
    from accuquant.units.ray_cluster import RayCluster

    with (
        RayCluster(job_of(network), {"network": network}, address=nodes.address) as engine,
        pytest.raises(ClusterError, match=r"got no GPU on any node.*--device cpu"),
    ):
        InMemory(engine).map("s", UNITS, where, lambda: None)


def test_units_that_need_a_gpu_run_on_its_node_each_with_one_and_others_anywhere(
    nodes: Any, network: nn.Module
) -> None:
    from accuquant.units.ray_cluster import RayCluster

    with_gpus = nodes.add_node(num_cpus=3, num_gpus=2).node_id
    with RayCluster(job_of(network), {"network": network}, address=nodes.address) as engine:
        on_gpus = InMemory(engine).map("gpu", UNITS, where, lambda: None)
        anywhere = InMemory(engine).map("cpu", UNITS, where, lambda: None, anywhere=True)
    assert {node for node, _ in on_gpus} == {with_gpus}
    assert {visible for _, visible in on_gpus} == {"0", "1"}
    assert {node for node, _ in anywhere} > {with_gpus}
    assert not {visible for _, visible in anywhere} & {"0", "1"}
