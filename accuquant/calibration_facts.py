"""What a recipe records of its calibration, as far as other stages read it: typed, and checked at loading."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from accuquant._util.facts import Count, LongName, Name, Real, Sha256, Text, as_facts

#: A prompt may break its lines.
_Prompt = Annotated[str, Meta(max_length=1 << 20)]
_Pixels = Annotated[int, Meta(ge=1, le=65536)]
# not tuple[_Pixels, _Pixels]: msgspec 0.23 crashes when the garbage collector meets it beside a bounded int
_TwoPixels = Annotated[tuple[_Pixels, ...], Meta(min_length=2, max_length=2)]


#: Kind of guidance -> how often every latent goes through the network in one step.
COPIES = {
    "none": 1,
    "embedded": 1,
    "classifier-free": 2,
    "conditional-first": 2,
    "normalized": 2,
    "beyond-conditional": 2,
    "image-and-text": 3,
}


@dataclass(frozen=True)
class SettingsFacts:
    """The numbers of a calibration; `steps` is None where no sampler was simulated."""

    steps: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    seed: Count = 0
    num_trajectories: Count = 0


@dataclass(frozen=True)
class GuidanceFacts:
    """How the calibrated process guided."""

    kind: Text = "none"
    scale: Real = 1.0
    image_scale: Real = 1.0
    rescale: Real = 0.0
    learned_variance: bool = False
    negated: bool = False

    @property
    def copies(self) -> int:
        """How often every latent goes through the network in one step; 1 for a kind that is not known."""
        return COPIES.get(self.kind, 1)


@dataclass(frozen=True)
class LoraFacts:
    """A LoRA that was fused: its name as the user gave it, its strength, and the digest of its file."""

    name: LongName
    scale: Annotated[float, Meta(ge=-100, le=100)]
    sha256: Sha256

    def to_dict(self) -> dict[str, Any]:
        """Return name, scale and digest as JSON values."""
        return {"name": self.name, "scale": self.scale, "sha256": self.sha256}


@dataclass(frozen=True)
class InputFacts:
    """Of prompts, images, masks or control images: how many there were, and a digest over all."""

    count: Count
    sha256: Sha256


@dataclass(frozen=True)
class TaskFacts:
    """What the pipeline was asked for."""

    prompts: InputFacts | None = None
    negative_prompt: _Prompt | None = None
    images: InputFacts | None = None
    masks: InputFacts | None = None
    control_images: InputFacts | None = None
    control_scale: tuple[Real, ...] | None = None
    ip_adapter_images: InputFacts | None = None
    guidance_scale: Real | None = None
    true_cfg_scale: Real | None = None
    image_guidance_scale: Real | None = None
    guidance_rescale: Real | None = None
    strength: Real | None = None
    image_size: _Pixels | _TwoPixels | None = None
    num_frames: _Pixels | None = None


@dataclass(frozen=True)
class LoadingFacts:
    """How the pipeline was read: the variant of its weights, the parts left out, what came from elsewhere."""

    variant: Name | None = None
    without: tuple[Name, ...] = ()
    network: LongName | None = None
    pipeline_config: LongName | None = None
    controlnets: tuple[LongName, ...] = ()
    ip_adapters: tuple[LongName, ...] = ()


@dataclass(frozen=True)
class CalibrationFacts:
    """The facts of `Recipe.calibration` that are read again; what else it holds is for people."""

    settings: SettingsFacts = SettingsFacts()
    task: TaskFacts = TaskFacts()
    guidance: GuidanceFacts | None = None
    loras: tuple[LoraFacts, ...] = ()
    loading: LoadingFacts = LoadingFacts()
    sensitivity: dict[str, float] = field(default_factory=dict)
    int8_mac_share: Annotated[float, Meta(ge=0, le=1)] | None = None
    method: Text | None = None

    @classmethod
    def of(cls, calibration: Any) -> CalibrationFacts:
        """Read `Recipe.calibration`. Raises FactsError where a value has another type."""
        return as_facts(calibration, cls)
