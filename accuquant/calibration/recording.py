"""Record full-precision trajectories batch by batch into the work folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from safetensors.torch import save_file
from torch import nn

from accuquant._util.files import atomic_write
from accuquant._util.progress import AtHome, Progress
from accuquant.denoising.process import DenoisingProcess
from accuquant.denoising.start import Start
from accuquant.groups import StepGroups
from accuquant.networks.network import quantizable_layers
from accuquant.pipelines.source import Source
from accuquant.pipelines.starts import Starter, from_noise_alone
from accuquant.units.tensor_tree import storable
from accuquant.units.units import Engine, InMemory, unit_seed

from .activations import ActivationSampler
from .calibration_settings import CalibrationSettings
from .input_moments import MomentSampler, plan_rows
from .placement import Placement
from .recorded_inputs import RecordedInputs, is_whole, rows_beside, save_inputs
from .stored_batch import StoredBatch, save_batch
from .tensor_file import TensorFile
from .trajectory import place_of, record_batch
from .work_folder import WorkFolder


@dataclass(frozen=True)
class Recorder:
    """Makes the trajectories of a calibration, one batch a unit, in files of its work folder.

    What a batch gives depends on the batch alone: its images come from their own seeds, and what is drawn
    from its activations comes from a seed of the batch. So batches may be recorded in any order, and again.
    """

    source: Source
    settings: CalibrationSettings
    starter: Starter
    groups: StepGroups
    work: WorkFolder
    engine: Engine
    shown: Progress

    def record(self, placement: Placement | None) -> list[StoredBatch]:
        """Record the batches that are not there yet, and return all.

        The inputs of the layers in `placement` are sampled on the way; None where they are not needed any
        more. Raises OSError where the disk is full: what was recorded before stays.
        """
        members = self._members()
        missing = [k for k in range(len(members)) if not self._has(k, inputs=placement is not None)]
        if missing:
            start_of = self._starts(members, missing)
            self.starter.close()
            steps, away = len(self._process), self.engine.away
            self.shown.stage("full-precision trajectories", len(members) * steps)
            if len(missing) < len(members):
                self.shown.advance((len(members) - len(missing)) * steps)
            recording = _Recording(
                self.source.network, self._process, self.groups, self.settings.seed, len(members),
                placement, self._rounded(placement), self.work, start_of, AtHome(self.shown),
            )  # fmt: skip
            InMemory(self.engine).map(
                "trajectories",
                [str(batch) for batch in missing],
                recording,
                (lambda: self.shown.advance(steps)) if away else lambda: None,
            )
        return [StoredBatch(self.work.trajectories(k)) for k in range(len(members))]

    def inputs(self, placement: Placement) -> RecordedInputs:
        """Return what the layers saw in all batches."""
        files = [self.work.inputs(k) for k in range(len(self._members()))]
        return RecordedInputs(files, quantizable_layers(self.source.network), self._rounded(placement))

    @property
    def _process(self) -> DenoisingProcess:
        return self.starter.process

    def _members(self) -> list[range]:
        """Return which trajectories run together."""
        count, size = self.settings.num_trajectories, self.settings.batch_size
        return [range(first, min(first + size, count)) for first in range(0, count, size)]

    def _has(self, batch: int, *, inputs: bool) -> bool:
        there = TensorFile(self.work.trajectories(batch)).whole()
        return there and (not inputs or is_whole(self.work.inputs(batch)))

    def _rounded(self, placement: Placement | None) -> tuple[str, ...]:
        return placement.quantized if placement and self.settings.rounding != "nearest" else ()

    def _starts(self, members: Sequence[range], missing: Sequence[int]) -> Callable[[int], Start]:
        """Return what gives the start of a batch; what encoders made is kept, and read when it is needed."""

        def make(batch: int) -> Start:
            return self.starter.start(members[batch], seed=self.settings.seed)

        if from_noise_alone(self.source) and not self.engine.away:
            return make
        self.shown.stage("prompts and first latents", len(missing))
        for batch in missing:
            path = self.work.start(batch)
            if not TensorFile(path).whole():
                tensors = {name: storable(tensor) for name, tensor in make(batch).to_tensors().items()}
                with atomic_write(path) as temporary:
                    save_file(tensors, temporary)
            self.shown.advance()
        return _KeptStart(self.work)


@dataclass(frozen=True)
class _KeptStart:
    """Reads the start of a batch."""

    work: WorkFolder

    def __call__(self, batch: int) -> Start:
        return Start.from_tensors(TensorFile(self.work.start(batch)).all())


@dataclass(frozen=True)
class _Recording:
    """Records one of `count` batches, and samples what the layers in `placement` see, into its files."""

    network: nn.Module
    process: DenoisingProcess
    groups: StepGroups
    seed: int
    count: int
    placement: Placement | None
    rounded: tuple[str, ...]
    work: WorkFolder
    start_of: Callable[[int], Start]
    shown: AtHome

    def __call__(self, unit: str) -> None:
        """Record the batch of that number."""
        batch = int(unit)
        self._record(batch, self.start_of(batch))
        self.work.start(batch).unlink(missing_ok=True)

    def _record(self, batch: int, start: Start) -> None:
        if self.placement is None:
            found = record_batch(self.network, self.process, start, lambda _step: self.shown.advance())
            save_batch(self.work.trajectories(batch), found)
            return
        activations, moments = self._samplers(batch, self.placement)
        group_of = [self.groups.find(t) for t in self.process.timesteps]

        def before_step(step: int) -> None:
            activations.group, activations.place = group_of[step], place_of(step, self.process)
            self.shown.advance()

        try:
            with activations.watch(self.network), moments.watch():
                found = record_batch(self.network, self.process, start, before_step)
            save_inputs(self.work.inputs(batch), activations, moments)
        finally:
            moments.close()
        save_batch(self.work.trajectories(batch), found)

    def _samplers(self, batch: int, placement: Placement) -> tuple[ActivationSampler, MomentSampler]:
        """Return what draws from the activations of one batch, as much as all batches together want of it."""
        group_of = [self.groups.find(t) for t in self.process.timesteps]
        calls = [group_of.count(group) * self.count for group in range(len(self.groups))]
        layers = quantizable_layers(self.network)
        rounded = {name: layers[name] for name in self.rounded}
        return (
            ActivationSampler(placement.quantized, calls, unit_seed(self.seed, (batch, 0))),
            MomentSampler(
                rounded,
                plan_rows(rounded, sum(calls), self.count),
                unit_seed(self.seed, (batch, 1)),
                rows_beside(self.work.inputs(batch)),
            ),
        )
