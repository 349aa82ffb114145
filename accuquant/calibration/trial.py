"""One unit of every stage, timed and measured on the very network and device that will calibrate."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from accuquant._util.progress import Progress
from accuquant.denoising.one_step import OneStepScheduler
from accuquant.denoising.process import DenoisingProcess
from accuquant.denoising.schedulers import history_tensors
from accuquant.denoising.start import Start
from accuquant.groups import StepGroups
from accuquant.networks.device import device_of
from accuquant.networks.network import quantizable_layers
from accuquant.networks.simulate import quantize_network, quantized_layers
from accuquant.networks.tensor_peak import peak_of
from accuquant.qparams import LayerQParams

from .activations import ActivationSampler, Samples, initial_qparams
from .calibration_settings import CalibrationSettings
from .cost_line import CostLine
from .gradient import Segment
from .gradient import exact as differentiated
from .input_moments import Drawn, MomentSampler, RowNeed, moments_of, plan_rows, row_need
from .learning import end_point_loss, held_out_errors
from .output_correction import corrected
from .output_search import count_calls, refine_scales
from .rounding import compensate, rounding_work
from .row_store import FiledMoments, RowSums
from .seen_inputs import InputWatch
from .sensitivity import measure_sensitivity
from .trajectory import TrajectoryBatch, record_batch

#: Seconds after which something is not repeated to be timed, and how often it is at most.
_LONG, _REPEATS = 3.0, 3
#: The widest layer that is rounded, and summed, on trial.
_WIDEST = 1536
_CHUNK = 512


@dataclass(frozen=True)
class Unit:
    """What a unit of a stage took: seconds, and bytes of tensors at the highest, beyond what lasts."""

    seconds: float = 0.0
    bytes: int = 0


@dataclass(frozen=True)
class Trial:
    """What units of the stages took.

    `rows` is what the recording's rows take, `copy` what the simulated network holds beside the float one, in
    bytes, `learned` the numbers that are learned in it. A solver that `remembers` keeps outputs of
    earlier steps.
    """

    sampled: Unit
    rows: RowNeed
    summed: CostLine
    scales: tuple[float, float]
    refined: Unit
    rounded: CostLine
    alone: Unit
    simulated: Unit
    copy: int
    learned: int
    judged: Unit
    shared: Unit
    group: Unit
    inputs: InputWatch
    remembers: bool


class Rehearsal:
    """A network that stands at the first step with one batch, and what is tried on it."""

    def __init__(
        self,
        network: nn.Module,
        process: DenoisingProcess,
        start: Start,
        groups: StepGroups,
        names: Sequence[str],
        settings: CalibrationSettings,
    ) -> None:
        self.network, self.process, self.groups, self.settings = network, process, groups, settings
        self.names = names
        layers = quantizable_layers(network)
        self.layers = {name: layers[name] for name in names}
        self.batch = _standing(network, process, start.to(device_of(network)))
        self._rounded = self.layers if settings.rounding == "gptq" else {}
        self._batches = -(-settings.num_trajectories // settings.batch_size)
        self._one = StepGroups((groups.edges[0], groups.edges[-1]))

    def warm_up(self) -> None:
        """Call the network once."""
        self._step(0)

    def run(self, calls: Sequence[int], folder: Path, shown: Progress) -> Trial:
        """Try a unit of every stage; `folder` takes the rows of the widest layers meanwhile.

        `calls[g]` are the calls of the recording in step group g.
        """
        shown.stage("timing one unit of every stage", 4)
        settings = self.settings
        sampled, drawn = self._sample(calls, folder)
        inputs = self._look()
        rows = row_need(self._rounded, inputs.positions, sum(calls), self._batches)
        shown.advance()
        samples = self._samples()
        qparams, scales = self._scales(samples)
        refined = self._refine(qparams) if settings.refine else Unit()
        shown.advance()
        rounded = self._round(qparams, drawn) if settings.rounding == "gptq" else CostLine()
        alone = self._quantize_one(qparams) if settings.sensitivity or settings.float_budget else Unit()
        shown.advance()
        learned = self._learn(qparams)
        shown.advance()
        return Trial(
            sampled=sampled,
            rows=rows,
            summed=_sum_seconds(rows),
            scales=scales,
            refined=refined,
            rounded=rounded,
            alone=alone,
            inputs=inputs,
            remembers=bool(self._history()),
            **learned,
        )

    def _history(self) -> list[Any]:
        """Return what the solver remembers after a step."""
        self._step(0)
        return list(history_tensors(self.process.save_state().scheduler))

    def _sample(self, calls: Sequence[int], folder: Path) -> tuple[Unit, Drawn]:
        path = folder / "rows"
        plans = plan_rows(self._rounded, sum(calls), self._batches)
        moments = MomentSampler(self._rounded, plans, self.settings.seed, path)
        sampler = ActivationSampler(self.names, calls, self.settings.seed)

        def call() -> None:
            with sampler.watch(self.network), moments.watch():
                self._step(0)

        unit = measure(self.network, call)
        return unit, (moments.finish(), path)

    def _look(self) -> InputWatch:
        inputs = InputWatch(self.names)
        for step in sorted({0, len(self.process) - 1}):
            with inputs.watch(self.network):
                self._step(step)
        return inputs

    def _samples(self) -> Samples:
        sampler = ActivationSampler(self.names, [1], self.settings.seed)
        with sampler.watch(self.network):
            self._step(0)
        return sampler.samples()

    @torch.no_grad()
    def _step(self, step: int) -> None:
        generators = self.process.restore_state(self.batch.state_before(step))
        self.process.step(self.batch.bind(self.network), self.batch.latents_before(step), step, generators)

    def _qparams(self, samples: Samples) -> dict[str, LayerQParams]:
        settings = self.settings
        return initial_qparams(
            self.network,
            samples,
            weight_bits=settings.weight_bits,
            activation_bits=settings.activation_bits,
            observer=settings.observer,
            affine=settings.affine,
            format=settings.format,
        )

    def _scales(self, samples: Samples) -> tuple[dict[str, LayerQParams], tuple[float, float]]:
        """Return first scales, and the seconds that they take, once for all groups and for each of them."""
        qparams = self._qparams(samples)
        twice = {name: [*groups, *groups] for name, groups in samples.items()}
        one, two = (_elapsed(self.network, partial(self._qparams, s)) for s in (samples, twice))
        group = min(max(0.0, two - one), one)
        return qparams, (one - group, group)

    def _refine(self, qparams: dict[str, LayerQParams]) -> Unit:
        """Return what a call takes whose layers try all factors."""

        def work() -> None:
            refine_scales(self.network, self.process, self._one, qparams, [self.batch])

        calls = count_calls(self._one.steps_of(self.process.timesteps), 1)
        unit = measure(self.network, work)
        return Unit(unit.seconds / calls, unit.bytes)

    def _round(self, qparams: dict[str, LayerQParams], drawn: Drawn) -> CostLine:
        """Round a narrow layer and a wide one."""
        work = {name: rounding_work(layer, None) for name, layer in self.layers.items()}
        narrow = min(work, key=lambda name: work[name])
        fitting = [name for name in work if work[name][0] <= _WIDEST]
        wide = max(fitting or [narrow], key=lambda name: work[name])
        points = []
        for name in dict.fromkeys((narrow, wide)):
            taken = moments_of(name, self.layers[name], [drawn])
            work_of = partial(compensate, self.layers[name], qparams[name], taken, device_of(self.network))
            seconds = _elapsed(self.network, work_of)
            rows = taken.rows if isinstance(taken, FiledMoments) else None
            points.append((*rounding_work(self.layers[name], rows), seconds))
        return CostLine.through(points)

    def _quantize_one(self, qparams: dict[str, LayerQParams]) -> Unit:
        name = self.names[len(self.names) // 2]

        def work() -> None:
            measure_sensitivity(
                self.network, self.process, self._one, {name: qparams[name]}, self.batch, num_steps=1
            )

        return measure(self.network, work)

    def _learn(self, qparams: dict[str, LayerQParams]) -> dict[str, Any]:
        """Try a step of the simulated network: judged, and differentiated in both stages of learning."""
        spread = [
            layer.with_activation_scale(np.repeat(layer.activation_scale, len(self.groups)))
            for layer in qparams.values()
        ]
        begun = time.perf_counter()
        simulated = quantize_network(self.network, spread, self.groups)
        made = Unit(time.perf_counter() - begun)
        segment = Segment(self.batch, range(1))

        def judge() -> None:
            held_out_errors(simulated, self.process, segment.steps, [self.batch])

        def differentiate() -> None:
            differentiated(self.process, self.batch.bind(simulated), segment, end_point_loss)

        judged = measure(simulated, judge)
        layers = quantized_layers(simulated)
        for layer in layers.values():
            layer.learning = True
        group = measure(simulated, differentiate)
        learned = sum(p.numel() for p in simulated.parameters() if p.requires_grad)
        with corrected(layers) as corrections:
            shared = measure(simulated, differentiate)
            learned += sum(p.numel() for c in corrections.values() for p in c.parameters())
        return {
            "simulated": made,
            "copy": bytes_beside(simulated, self.network),
            "learned": learned,
            "judged": judged,
            "group": group,
            "shared": shared,
        }


def bytes_beside(network: nn.Module, other: nn.Module) -> int:
    """Return the bytes of the tensors of `network` that `other` does not share."""
    shared = {tensor.untyped_storage().data_ptr() for tensor in other.state_dict(keep_vars=True).values()}
    own = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in network.state_dict(keep_vars=True).values()
    }
    return sum(size for place, size in own.items() if place not in shared)


def measure(network: nn.Module, work: Callable[[], object]) -> Unit:
    """Do `work` once for its memory, which also warms up, then for its time."""
    begun = time.perf_counter()
    peak = peak_of(network, work)
    first = time.perf_counter() - begun
    return Unit(first if first > _LONG else _elapsed(network, work), peak)


def _elapsed(network: nn.Module, work: Callable[[], object]) -> float:
    """Return the median seconds of up to three times `work`."""
    device = device_of(network)
    times: list[float] = []
    while len(times) < _REPEATS and sum(times) < _LONG:
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def _sum_seconds(need: RowNeed) -> CostLine:
    """Return the seconds of adding a chunk of rows to a layer's sums: per row, and per product."""
    shapes = [(layer.groups, layer.width) for layer in need.sums]
    fitting = [shape for shape in shapes if shape[1] <= _WIDEST] or shapes[:1]
    points = []
    for groups, width in dict.fromkeys((*fitting[:1], *fitting[-1:])):
        rows, sums = torch.randn(_CHUNK, groups * width), RowSums(groups, width)
        sums.add(rows)
        begun = time.perf_counter()
        sums.add(rows)
        points.append((float(_CHUNK), float(_CHUNK * groups * width**2), time.perf_counter() - begun))
    return CostLine.through(points)


@torch.no_grad()
def _standing(network: nn.Module, process: DenoisingProcess, start: Start) -> TrajectoryBatch:
    """Return a batch that is before every step where `start` is before the first."""
    if isinstance(process.scheduler, OneStepScheduler):
        return record_batch(network, process, start).to(start.latents.device)
    process.reset()
    state = process.save_state(start.fresh_generators())
    latents = start.latents.expand(len(process) + 1, *start.latents.shape)
    return TrajectoryBatch(latents, (state,) * len(process), start.conditioning)
