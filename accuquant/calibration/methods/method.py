"""What a calibration method is: what it decides, and what it is given and gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from accuquant._util.progress import Progress
from accuquant.calibration.placement import Placement
from accuquant.calibration.trajectory import TrajectoryBatch
from accuquant.channel_fold import ChannelFold
from accuquant.denoising.process import DenoisingProcess
from accuquant.e4m3 import Format
from accuquant.groups import StepGroups
from accuquant.pipelines.source import Source
from accuquant.prediction_correction import PredictionCorrection
from accuquant.qparams import LayerQParams

if TYPE_CHECKING:
    from accuquant.calibration.calibration_settings import CalibrationSettings

#: Settings that belong to AccuQuant's own way. Another method refuses those that are not in its `options`.
OWN_SETTINGS = (
    "group_size",
    "iterations",
    "shared_iterations",
    "probe",
    "gradient",
    "observer",
    "refine",
    "rounding",
    "float_budget",
    "sensitivity",
    "learning_rate",
    "shared_learning_rate",
    "equalize",
)


@dataclass(frozen=True)
class Run:
    """What a method is given: the float network, its trajectories, and which layers to quantize."""

    source: Source
    settings: CalibrationSettings
    process: DenoisingProcess
    groups: StepGroups
    placement: Placement
    batches: Sequence[TrajectoryBatch]
    shown: Progress


@dataclass(frozen=True)
class Found:
    """What a method gives back: qparams by layer, and facts on how they were found, as JSON values."""

    layers: Mapping[str, LayerQParams]
    facts: Mapping[str, Any] = field(default_factory=dict)
    correction: PredictionCorrection | None = None
    folds: tuple[ChannelFold, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to calibrate.

    `source` names paper and section, `matched` what of it is done here, `not_matched` what is not, and why.
    `options` are those of OWN_SETTINGS that the method takes, `defaults` values of settings that differ from
    AccuQuant's where they are not given. `one_set`: one activation scale for all steps. `every_step`: its
    trajectories have as many steps as are sampled with; otherwise as few as AccuQuant's own. `find` does the
    work; None is AccuQuant's own way, which calibrate.py goes. `check` raises where it has nothing to do,
    before anything runs. Bits: the fewest and the most.
    """

    name: str
    meaning: str
    source: str
    matched: str
    not_matched: str
    find: Callable[[Run], Found] | None
    check: Callable[[nn.Module, Placement], object] = lambda network, placement: None
    options: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    one_set: bool = True
    every_step: bool = False
    weight_bits: tuple[int, int] = (2, 8)
    activation_bits: tuple[int, int] = (2, 8)
    #: What it rounds to.
    formats: tuple[Format, ...] = ("int8",)
    #: Learning steps a block, for those that learn.
    iterations: int = 0

    @property
    def refused(self) -> tuple[str, ...]:
        """The settings that have no meaning for the method."""
        return tuple(name for name in OWN_SETTINGS if name not in self.options) if self.find else ()
