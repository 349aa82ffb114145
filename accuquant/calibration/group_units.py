"""Step groups as units of work: each is learned by itself, in a network that holds the scales of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from accuquant._util.progress import AtHome, Progress
from accuquant.denoising.process import DenoisingProcess
from accuquant.networks.mapped_pages import give_back_weights
from accuquant.networks.simulate import quantize_network, quantized_layers
from accuquant.recipe import GroupResult, Recipe
from accuquant.units.per_worker import PerWorker
from accuquant.units.units import Engine, InMemory

from .block_checkpoints import checkpoint_blocks
from .calibration_settings import CalibrationSettings
from .descent import LearningSettings
from .learning import learn_group
from .trajectory import TrajectoryBatch
from .work_folder import WorkFolder


def learn_groups(
    network: nn.Module,
    process: DenoisingProcess,
    initial: Recipe,
    batches: Sequence[TrajectoryBatch],
    held_out: Sequence[TrajectoryBatch],
    settings: CalibrationSettings,
    *,
    work: WorkFolder,
    engine: Engine,
    checkpoint: bool | None,
    shown: Progress,
) -> Recipe:
    """Return `initial` with the scales of every step group learned, and what came of it.

    A group looks at its own scales only, so groups may be learned anywhere, each in the simulated network of
    its process. What they learned lies in the work folder.
    """
    simulated = PerWorker(lambda: _simulated(network, process, initial, batches, settings, checkpoint))
    members = initial.groups.steps_of(process.timesteps)
    learner = _Learner(simulated, process, members, batches, held_out, settings, work, AtHome(shown))
    if engine.away:
        shown.stage("step groups", len(members))
    InMemory(engine).map(
        "step groups",
        [str(group) for group in range(len(members))],
        learner,
        shown.advance if engine.away else lambda: None,
    )
    layers = quantized_layers(simulated.get())
    results: list[GroupResult] = []
    for group in range(len(members)):
        done = work.load_group(group)
        assert done is not None
        scales, result = done
        for name, layer in layers.items():
            layer.set_scale(group, scales[name])
        results.append(result)
        if engine.away and settings.group_iterations:
            shown.message(f"{learner.title(group)}: {describe_result(result)}")
    return replace(
        initial,
        layers={name: layer.learned_qparams() for name, layer in layers.items()},
        results=tuple(results),
    )


@dataclass(frozen=True)
class _Learner:
    """Learns the group of a number, unless it has been, and keeps what it learned."""

    simulated: PerWorker[nn.Module]
    process: DenoisingProcess
    members: Sequence[Sequence[int]]
    batches: Sequence[TrajectoryBatch]
    held_out: Sequence[TrajectoryBatch]
    settings: CalibrationSettings
    work: WorkFolder
    shown: AtHome

    def title(self, group: int) -> str:
        """Return how people are told of a group."""
        return f"step group {group + 1}/{len(self.members)}"

    def __call__(self, unit: str) -> None:
        """Learn the group."""
        group, settings = int(unit), self.settings
        self.shown.stage(self.title(group), settings.group_iterations)
        if self.work.load_group(group) is not None:
            self.shown.advance(settings.group_iterations)
            return
        network, kept = self.simulated.get(), self.work.group_state(group)
        steps = range(self.members[group][0], self.members[group][-1] + 1)
        result = learn_group(
            network, self.process, steps, group, self.batches, self.held_out,
            LearningSettings(
                settings.gradient, settings.group_iterations, settings.learning_rate, settings.probe
            ),
            seed=settings.seed * 10_007 + group, progress=self.shown.advance, kept=kept,
        )  # fmt: skip
        scales = {name: layer.scale_of(group) for name, layer in quantized_layers(network).items()}
        self.work.save_group(group, scales, result)
        kept.remove()
        if settings.group_iterations:
            self.shown.message(f"{self.title(group)}: {describe_result(result)}")


def _simulated(
    network: nn.Module,
    process: DenoisingProcess,
    recipe: Recipe,
    batches: Sequence[TrajectoryBatch],
    settings: CalibrationSettings,
    checkpoint: bool | None,
) -> nn.Module:
    simulated = quantize_network(network, recipe.layers.values(), recipe.groups)
    give_back_weights(network, recipe.layers)
    if settings.group_iterations:
        checkpoint_blocks(simulated, process, batches[0], checkpoint)
    return simulated


def describe_result(result: GroupResult) -> str:
    """Return the losses before and after, and why nothing was kept."""
    change = f"loss {result.initial_loss:.3g} -> {result.final_loss:.3g}"
    if result.status != "learned":
        return f"{change} ({result.status}: {result.note})"
    return f"{change} ({result.note})" if result.note else change
