"""A calibration whose units run in other processes writes the same bytes."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from other_process import OtherProcess
from torch import Tensor, nn

from accuquant._util.progress import Silent
from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.source_job import source_job
from accuquant.units.cluster import Cluster
from accuquant.units.job import opened
from accuquant.units.travelling import Unpacker, pack

SETTINGS = CalibrationSettings(
    probe=False, steps=4, group_size=2, num_trajectories=4, batch_size=2, iterations=2, shared_iterations=2,
    sensitivity=True, observer="minmax", activation_bits=4, weight_bits=4, learning_rate=0.02,
)  # fmt: skip


class Two(nn.Module):
    """Two layers of different sizes, so that there is something to round and to share."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (self.second(torch.tanh(self.first(sample))),)


class Told(Silent):
    def __init__(self) -> None:
        self.stages: dict[str, list[int]] = {}

    def stage(self, name: str, total: int) -> None:
        self.stages[name] = [total, 0]
        self._name = name

    def advance(self, units: int = 1) -> None:
        self.stages[self._name][1] += units


def test_the_recipe_of_workers_has_the_same_bytes(
    pointwise_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Two().requires_grad_(False).eval()
    source, engines = dataclasses.replace(pointwise_source, network=network), []

    @contextmanager
    def engine_of(_cluster: Any, job: Any, _roots: Any, _say: Any) -> Iterator[OtherProcess]:
        engines.append(OtherProcess(source, job(), 3))
        yield engines[-1]

    calibrate(source, SETTINGS, output=tmp_path / "serial")
    monkeypatch.setattr(importlib.import_module("accuquant.calibration.calibrate"), "engine_of", engine_of)
    told = Told()
    calibrate(source, SETTINGS, output=tmp_path / "workers", progress=told, cluster=Cluster(3))
    assert (tmp_path / "workers").read_bytes() == (tmp_path / "serial").read_bytes()
    assert set(engines[0].computed) == {
        "trajectories", "scales", "refined", "rounding", "sensitivity", "gradient", "judging", "step groups",
    }  # fmt: skip
    assert all(total == done for total, done in told.stages.values()), told.stages


def test_workers_open_the_files_of_a_pipeline_or_a_copy_of_a_network_that_has_none(
    tiny_pipeline: Path, tiny_source: Source, pointwise_source: Source
) -> None:
    from_files, copied = source_job(tiny_source), source_job(pointwise_source)
    small = len(pack(from_files, {}).data)
    assert small < 2000
    assert str(tiny_pipeline.absolute()) in repr(from_files.open)
    for job, source in ((from_files, tiny_source), (copied, pointwise_source)):
        there: Any = Unpacker({}).unpack(pack(job, {}).data, lambda _token: b"")
        with opened(there, "node", "cpu") as roots:
            assert roots["network"] is not source.network
            assert there.hashes == {"network": source.model_hash}


def test_what_changed_a_network_after_it_was_loaded_is_noticed(tiny_pipeline: Path) -> None:
    source = load_source(tiny_pipeline)
    next(source.network.parameters()).data.add_(1)
    job = source_job(dataclasses.replace(source))
    with pytest.raises(Exception, match="other files of the model"), opened(job, "node", "cpu"):
        raise AssertionError
