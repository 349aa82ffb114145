"""The result of a verification: plain data, written as JSON for machines and HTML for people.

The JSON object has these keys; a key is added, never renamed or removed, while `schema_version` is 1:

    schema_version    1
    passed            true when every check passed, null where nothing was judged: every threshold was off
    checks            [{name, value, relation ("at least" | "at most"), limit, unit, passed}]
    model             {name, pipeline_class, component, parameters, image_shape}
    settings          engine, lowering, precision, bits, num_images, steps, seed, batch_size, scheduler, ...
    versions          package -> version
    timesteps         [T], the timestep of each step
    fidelity          engine against FP32:         a comparison
    quantization      fake-quantized against FP32: a comparison
    lowering          engine against fake-quantized: a comparison
    fid2fp32          {extractor, engine, simulated} or null
    layers            [{name, elements, differing, share, max_difference}] or null when not asked for
    sensitivity       [{name, error, int8}], the most sensitive first: error with this layer alone quantized
    groups            [{start, end, initial_loss, final_loss, status, note}], timesteps end <= t < start
    placement         {int8_mac_share, int8_layers, float_layers}: what was calibrated; with OpenVINO also
                      what ran: {int8_share_run (of the calibrated layers' work), calibrated_in_float [name],
                      calibrated_not_found [name], processor}
    sizes             {fp32_weights, engine_files} in bytes
    latencies         [{name, median_ms, fastest_ms, batch_size, rounds}], one network call
    notes             [text], what a reader should know

A comparison holds `summary` (psnr, ssim, cosine, latent_mse, and of videos worst_frame_psnr: {median, mean,
minimum, maximum}), `images` (the same, one value an image or video, in seed order), `latent_mse_by_step`
({median, mean, p10, p90}, each [T]: the accumulated error) and `step_mse_by_step` (the same, or null: the
error that each step alone adds).

`layers` is measured with equal levels in the layers before, and with the graph in ONNX Runtime whatever the
engine: it judges the lowering of each layer, not how roundings add up through the network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from accuquant._util.files import write_text
from accuquant._util.finite import finite_or_null
from accuquant.verification.measure.latency import Latency
from accuquant.verification.measure.metrics import Curve, Summary
from accuquant.verification.measure.parity import LayerParity
from accuquant.verification.report.pictures import Gallery
from accuquant.verification.report.thresholds import Verdict

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Comparison:
    """How far one branch is from another: a value an image, and the latent error over the steps.

    Of videos, `worst_frame` has the PSNR of each video's worst frame; `psnr` is over all of its frames.
    """

    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    cosine: tuple[float, ...]
    latent_mse: tuple[float, ...]
    by_step: Curve
    step_error: Curve | None = None
    worst_frame: tuple[float, ...] = ()

    @property
    def metrics(self) -> dict[str, tuple[float, ...]]:
        """The metrics by name, one value an image: four, and of videos the fifth."""
        four = {"psnr": self.psnr, "ssim": self.ssim, "cosine": self.cosine, "latent_mse": self.latent_mse}
        return four | ({"worst_frame_psnr": self.worst_frame} if self.worst_frame else {})

    @property
    def summary(self) -> dict[str, Summary]:
        """Statistics of the metrics over the images."""
        return {name: Summary.of(values) for name, values in self.metrics.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "summary": {name: asdict(summary) for name, summary in self.summary.items()},
            "images": {name: list(values) for name, values in self.metrics.items()},
            "latent_mse_by_step": self.by_step.to_dict(),
            "step_mse_by_step": self.step_error.to_dict() if self.step_error else None,
        }


@dataclass(frozen=True)
class FidFigure:
    """FID2FP32 of the engine's and of the simulation's images, by one feature network."""

    extractor: str
    engine: float
    simulated: float


@dataclass(frozen=True)
class GroupFigure:
    """What calibration did in the step group of timesteps end <= t < start."""

    start: float
    end: float
    initial_loss: float
    final_loss: float
    status: str
    note: str


@dataclass(frozen=True)
class LayerSensitivity:
    """The error that calibration measured with this layer alone quantized, and whether it is in int8."""

    name: str
    error: float
    int8: bool


@dataclass(frozen=True)
class Report:
    """All that a verification measured. See the module's docstring for the JSON it becomes."""

    verdict: Verdict
    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    timesteps: tuple[float, ...]
    fidelity: Comparison
    quantization: Comparison
    lowering: Comparison
    gallery: Gallery
    fid: FidFigure | None = None
    layers: tuple[LayerParity, ...] | None = None
    sensitivity: tuple[LayerSensitivity, ...] = ()
    groups: tuple[GroupFigure, ...] = ()
    placement: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    latencies: tuple[Latency, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool | None:
        """Whether every check passed; None where nothing was judged."""
        return self.verdict.passed

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; the pictures are left out, numbers that are not finite become null."""
        data: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "passed": self.passed,
            "checks": [{**asdict(check), "passed": check.passed} for check in self.verdict.checks],
            "model": dict(self.model),
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "timesteps": list(self.timesteps),
            "fidelity": self.fidelity.to_dict(),
            "quantization": self.quantization.to_dict(),
            "lowering": self.lowering.to_dict(),
            "fid2fp32": asdict(self.fid) if self.fid else None,
            "layers": [layer.to_dict() for layer in self.layers] if self.layers is not None else None,
            "sensitivity": [asdict(layer) for layer in self.sensitivity],
            "groups": [asdict(group) for group in self.groups],
            "placement": dict(self.placement),
            "sizes": dict(self.sizes),
            "latencies": [asdict(latency) for latency in self.latencies],
            "notes": list(self.notes),
        }
        finite: dict[str, Any] = finite_or_null(data)
        return finite

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON to `path`, atomically."""
        write_text(path, self.to_json())
