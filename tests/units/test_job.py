"""A worker computes with the same versions and weights, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import accuquant
from accuquant.errors import ClusterError
from accuquant.networks.network import model_hash
from accuquant.units import agreement
from accuquant.units.agreement import differences, facts_here
from accuquant.units.job import Job, check_facts, opened


@pytest.fixture
def network() -> nn.Module:
    return nn.Linear(3, 3)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_worker_of_another_version_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = facts_here()
    check_facts(facts, "node x")
    assert facts["accuquant"] == accuquant.__version__
    assert facts["torch"] == torch.__version__
    monkeypatch.setattr(accuquant, "__version__", "0.0.1")
    monkeypatch.setattr(agreement, "version", lambda _name: "9.9")
    with pytest.raises(ClusterError, match=r"^worker on node x: got accuquant 0\.0\.1 instead of ") as raised:
        check_facts(facts, "node x")
    assert "numpy 9.9 instead of" in str(raised.value)
    assert "torch" not in str(raised.value).split(", expected")[0]


def test_what_a_worker_lacks_is_told() -> None:
    assert differences({"torch": "2"}, {"torch": "2", "diffusers": "1"}) == "diffusers missing instead of 1"


def test_a_worker_with_other_files_of_the_model_is_refused_by_name(network: nn.Module) -> None:
    job = Job(lambda _device: {"network": network}, {"network": "0" * 64})
    with (
        pytest.raises(
            ClusterError, match=r"^worker on node x: got other files of the model: the network's weights"
        ),
        opened(job, "node x", "cpu"),
    ):
        raise AssertionError


def test_a_worker_that_does_not_see_the_work_folder_is_refused_by_name(
    network: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "settings.json"
    job = Job(lambda _device: {"network": network}, {}, sees={str(path): b"{}"})
    for content in (None, b"{1}"):
        if content is not None:
            path.write_bytes(content)
        with (
            pytest.raises(
                ClusterError, match=r"^worker on node x: got no '.*settings.json' there, or another"
            ),
            opened(job, "node x", "cpu"),
        ):
            raise AssertionError
    path.write_bytes(b"{}")
    with opened(job, "node x", "cpu") as roots:
        assert roots["network"] is network


def test_a_worker_computes_with_as_many_threads_as_the_process_that_hands_out_the_work(
    network: nn.Module,
) -> None:
    torch.set_num_threads(3)
    job = Job(lambda _device: {"network": network}, {"network": model_hash(network)})
    torch.set_num_threads(1)
    with opened(job, "node x", "cpu"):
        assert torch.get_num_threads() == 3
