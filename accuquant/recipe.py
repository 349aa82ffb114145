"""The recipe: what calibration learned, as one safetensors file, and the only channel between stages."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from accuquant._util.facts import FactsError, Name, Real, Text, as_facts, parse_json
from accuquant._util.files import atomic_write
from accuquant.calibration_facts import CalibrationFacts
from accuquant.channel_fold import ChannelFold
from accuquant.e4m3 import Format
from accuquant.errors import AccuQuantError, RecipeError
from accuquant.groups import StepGroups
from accuquant.networks.signature import Signature
from accuquant.prediction_correction import PredictionCorrection
from accuquant.qparams import FloatArray, LayerQParams, fingerprint

FORMAT_VERSION = 1
#: With a correction of the prediction, or folds: whoever ignores them makes other images.
CORRECTED_VERSION = 2
_METADATA_KEY = "accuquant"
#: Of FP8: whoever takes its bytes for integers makes noise.
FP8_VERSION = 3
#: What the tensors of a layer are called, behind its name and a dot; others are not read.
_TENSOR_KINDS = ("weight_scale", "activation_scale", "weight_levels", "bias_correction", "fold_factor")
#: What numpy can read, as safetensors names it.
_NUMPY_TYPES = ("F32", "I8", "F16", "F64", "BOOL", "U8", "I16", "U16", "I32", "U32", "I64", "U64")
_FACTOR, _BIAS = "prediction_factor", "prediction_bias"
_RECALIBRATE = "Run `accuquant calibrate` again"


@dataclass(frozen=True)
class GroupResult:
    """What calibration did in one step group: the loss before and after, and how it ended.

    `status` is "learned", "initial" (no iteration asked for, or nothing to gain) or "rolled_back" (the loss
    diverged or turned NaN, and the group keeps its initial scales); `note` says why.
    """

    initial_loss: float
    final_loss: float
    status: Text = "learned"
    note: Text = ""


@dataclass(frozen=True)
class Recipe:
    """Quantization parameters of one denoising network, with all that is needed to reuse them.

    `layers` maps a module name to its LayerQParams; layers that are not in it stay float. `scheduler`
    is the diffusers configuration that was simulated, `model_hash` names the float weights,
    `calibration` holds the settings (JSON values only), `results` one GroupResult a step group. `correction`
    is what is taken off the network's prediction, `folds` are factors of channels that the float network gets
    first: `layers` describe the folded one. Most methods have neither. All layers have one `format`.
    """

    groups: StepGroups
    layers: dict[str, LayerQParams]
    signature: Signature
    scheduler: dict[str, Any]
    model_hash: str
    calibration: dict[str, Any] = field(default_factory=dict)
    results: tuple[GroupResult, ...] = ()
    correction: PredictionCorrection | None = None
    folds: tuple[ChannelFold, ...] = ()

    def __post_init__(self) -> None:
        for layer in self.layers.values():
            if layer.activation_scale.shape != (len(self.groups),):
                raise RecipeError(
                    f"layer '{layer.name}'",
                    got=f"activation scale of shape {layer.activation_scale.shape}",
                    expected=f"({len(self.groups)},): one scale for each step group",
                    remedy=_RECALIBRATE,
                )
        formats = {layer.format for layer in self.layers.values()}
        if len(formats) > 1:
            raise RecipeError(
                "recipe",
                got=f"layers of the formats {' and '.join(sorted(formats))}",
                expected="one format for all layers",
                remedy=_RECALIBRATE,
            )

    @property
    def format(self) -> Format:
        """What weights and activations are rounded to: "int8" or "fp8"."""
        return next((layer.format for layer in self.layers.values()), "int8")

    @cached_property
    def facts(self) -> CalibrationFacts:
        """The facts in `calibration` that later stages read, checked. Raises RecipeError."""
        try:
            return CalibrationFacts.of(self.calibration)
        except FactsError as fault:
            raise _damaged("recipe, calibration", str(fault)) from fault

    def check_weights(self, weights: Mapping[str, FloatArray]) -> None:
        """Raise RecipeError unless `weights` (module name -> float weight) are the calibrated ones."""
        for name, layer in self.layers.items():
            if name not in weights:
                raise RecipeError(
                    f"layer '{name}'",
                    got="no such layer in the model",
                    expected=f"one of its {len(weights)} layers, such as {next(iter(weights), '-')!r}",
                    remedy=f"The recipe was calibrated from another model. {_RECALIBRATE}",
                )
            weight = weights[name]
            if tuple(weight.shape) != layer.weight_shape or fingerprint(weight) != layer.fingerprint:
                raise RecipeError(
                    f"layer '{name}'",
                    got=f"a weight {list(weight.shape)} with other values",
                    expected=f"the weight {list(layer.weight_shape)} that was calibrated",
                    remedy=f"The recipe was calibrated from another checkpoint. {_RECALIBRATE}",
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe to `path` (.safetensors), atomically; the bytes depend on its content only."""
        with atomic_write(path) as temporary:
            temporary.write_bytes(self.to_bytes())

    def sha256(self) -> str:
        """Return the SHA-256 of the file that `save` writes, as 64 hex digits."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the file that `save` writes."""
        from safetensors.numpy import save

        metadata = json.dumps(self._metadata(), sort_keys=True, allow_nan=True)
        return save(self._tensors(), metadata={_METADATA_KEY: metadata})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read and validate a recipe file. Raises RecipeError on anything that is not one."""
        tensors, metadata = _read(Path(path))
        try:
            recipe = cls._assemble(tensors, as_facts(metadata, _RecipeFacts))
            _ = recipe.facts
        except FactsError as fault:
            raise _damaged(f"recipe '{path}'", str(fault)) from fault
        except RecipeError:
            raise
        except AccuQuantError as fault:
            raise _damaged(f"recipe '{path}'", f"{fault.subject}, {fault.got}") from fault
        return recipe

    def _tensors(self) -> dict[str, npt.NDArray[Any]]:
        tensors: dict[str, npt.NDArray[Any]] = {}
        for name, layer in self.layers.items():
            tensors[f"{name}.weight_scale"] = np.ascontiguousarray(layer.weight_scale, np.float32)
            tensors[f"{name}.activation_scale"] = np.ascontiguousarray(layer.activation_scale, np.float32)
            if layer.weight_levels is not None:
                tensors[f"{name}.weight_levels"] = np.ascontiguousarray(layer.weight_levels)
            if layer.bias_correction is not None:
                tensors[f"{name}.bias_correction"] = np.ascontiguousarray(layer.bias_correction)
        for fold in self.folds:
            tensors[f"{fold.producer}.fold_factor"] = fold.factors
        if self.correction is not None:
            tensors[_FACTOR], tensors[_BIAS] = self.correction.factor, self.correction.bias
        return tensors

    def _metadata(self) -> dict[str, Any]:
        more: dict[str, Any] = {}
        if self.correction is not None:
            more["correction_edges"] = list(self.correction.steps.edges)
        if self.folds:
            more["folds"] = [_fold_facts(fold) for fold in self.folds]
        version = CORRECTED_VERSION if more else FORMAT_VERSION
        if self.format == "fp8":
            version, more["format"] = FP8_VERSION, self.format
        return {
            "format_version": version,
            **more,
            "group_edges": list(self.groups.edges),
            "layers": [
                {
                    "name": layer.name,
                    "kind": layer.kind,
                    "weight_shape": list(layer.weight_shape),
                    "fingerprint": layer.fingerprint,
                    "weight_bits": layer.weight_bits,
                    "activation_bits": layer.activation_bits,
                    "zero_point": layer.zero_point,
                    "weight_levels": layer.weight_levels is not None,
                    "bias_correction": layer.bias_correction is not None,
                }
                for layer in self.layers.values()
            ],
            "signature": self.signature.to_dict(),
            "scheduler": self.scheduler,
            "model_hash": self.model_hash,
            "calibration": self.calibration,
            "results": [vars(result) for result in self.results],
        }

    @classmethod
    def _assemble(cls, tensors: dict[str, npt.NDArray[Any]], facts: _RecipeFacts) -> Recipe:
        return cls(
            groups=StepGroups(facts.group_edges),
            layers={item.name: _layer(item, tensors, facts.format) for item in facts.layers},
            signature=Signature.from_dict(facts.signature),
            scheduler=facts.scheduler,
            model_hash=facts.model_hash,
            calibration=facts.calibration,
            results=facts.results,
            correction=_correction(facts.correction_edges, tensors),
            folds=tuple(_fold(item, tensors) for item in facts.folds),
        )


@dataclass(frozen=True)
class _LayerFacts:
    name: Name
    kind: Text
    weight_shape: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=2**31)], ...], Meta(min_length=2, max_length=8)
    ]
    fingerprint: Text
    weight_bits: Annotated[int, Meta(ge=2, le=8)]
    activation_bits: Annotated[int, Meta(ge=2, le=8)]
    zero_point: Annotated[int, Meta(ge=-128, le=127)]
    weight_levels: bool
    bias_correction: bool


@dataclass(frozen=True)
class _FoldFacts:
    producer: Name
    consumers: tuple[Name, ...]
    rotated: Annotated[int, Meta(ge=1, le=2**20)] = 1


@dataclass(frozen=True)
class _RecipeFacts:
    """The metadata of a recipe (docs/recipe-format.md); later releases may add fields."""

    group_edges: Annotated[tuple[Real, ...], Meta(max_length=10_001)]
    layers: tuple[_LayerFacts, ...]
    signature: Any
    scheduler: dict[str, Any]
    model_hash: Text
    calibration: dict[str, Any]
    results: tuple[GroupResult, ...]
    correction_edges: Annotated[tuple[Real, ...], Meta(max_length=10_001)] | None = None
    folds: tuple[_FoldFacts, ...] = ()
    format: Format = "int8"


def _fold_facts(fold: ChannelFold) -> dict[str, Any]:
    facts: dict[str, Any] = {"producer": fold.producer, "consumers": list(fold.consumers)}
    return facts if fold.rotated == 1 else {**facts, "rotated": fold.rotated}


def _fold(item: _FoldFacts, tensors: Mapping[str, npt.NDArray[Any]]) -> ChannelFold:
    key = f"{item.producer}.fold_factor"
    if key not in tensors:
        raise _damaged(f"fold into '{item.producer}'", f"no tensor '{key}' in the recipe")
    return ChannelFold(item.producer, item.consumers, tensors[key], item.rotated)


def _correction(
    edges: tuple[float, ...] | None, tensors: Mapping[str, npt.NDArray[Any]]
) -> PredictionCorrection | None:
    if edges is None:
        return None
    missing = [name for name in (_FACTOR, _BIAS) if name not in tensors]
    if missing:
        raise _damaged("correction of the prediction", f"no tensor '{missing[0]}' in the recipe")
    return PredictionCorrection(StepGroups(edges), tensors[_FACTOR], tensors[_BIAS])


def _damaged(subject: str, got: str) -> RecipeError:
    return RecipeError(
        subject,
        got=got,
        expected="the fields and tensors that `accuquant calibrate` writes",
        remedy=f"The file is damaged. {_RECALIBRATE}",
    )


def _layer(item: _LayerFacts, tensors: dict[str, npt.NDArray[Any]], levels: Format) -> LayerQParams:
    name = item.name

    def tensor(kind: str) -> npt.NDArray[Any]:
        key = f"{name}.{kind}"
        if key not in tensors:
            raise RecipeError(
                f"layer '{name}'",
                got=f"no tensor '{key}' in the recipe",
                expected="a weight scale and an activation scale for each layer",
                remedy=f"The file is damaged. {_RECALIBRATE}",
            )
        if kind != "weight_levels" and tensors[key].dtype != np.float32:
            raise RecipeError(
                f"layer '{name}'",
                got=f"tensor '{key}' of type {tensors[key].dtype}",
                expected="float32",
                remedy=f"The file is damaged or was edited. {_RECALIBRATE}",
            )
        return tensors[key]

    return LayerQParams(
        name=name,
        kind=item.kind,
        weight_shape=item.weight_shape,
        fingerprint=item.fingerprint,
        weight_scale=tensor("weight_scale"),
        activation_scale=tensor("activation_scale"),
        weight_bits=item.weight_bits,
        activation_bits=item.activation_bits,
        zero_point=item.zero_point,
        weight_levels=tensor("weight_levels") if item.weight_levels else None,
        bias_correction=tensor("bias_correction") if item.bias_correction else None,
        format=levels,
    )


def _read(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    def error(got: str, expected: str, remedy: str) -> RecipeError:
        return RecipeError(f"recipe '{path}'", got=got, expected=expected, remedy=remedy)

    if not path.is_file():
        raise error(
            "no such file",
            "a .safetensors file from `accuquant calibrate`",
            "Check the path, or calibrate first",
        )
    unreadable = f"The file is damaged. {_RECALIBRATE}"
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = parse_json((file.metadata() or {}).get(_METADATA_KEY, "null"))
            held = file.keys() if isinstance(metadata, dict) else ()  # a checkpoint may hold gigabytes
            names = [name for name in held if name.rpartition(".")[2] in (*_TENSOR_KINDS, _FACTOR, _BIAS)]
            _check_types(path, file, names)
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, FactsError, UnicodeError, OSError) as fault:
        raise error(f"an unreadable file ({fault})", "a safetensors file", unreadable) from fault
    if not isinstance(metadata, dict):
        raise error(
            "safetensors without AccuQuant metadata",
            "a recipe",
            "Pass the file that `accuquant calibrate -o` wrote, not a checkpoint",
        )
    version = metadata.get("format_version")
    corrected = "correction_edges" in metadata or "folds" in metadata
    wanted = CORRECTED_VERSION if corrected else FORMAT_VERSION
    wanted = FP8_VERSION if metadata.get("format") == "fp8" else wanted
    if version != wanted or isinstance(version, bool):
        raise error(
            f"format version {version!r}",
            f"version {wanted}",
            "Upgrade AccuQuant, or calibrate again with this version",
        )
    return tensors, metadata


def _check_types(path: Path, file: Any, names: list[str]) -> None:
    """Refuse types before they are read: numpy has neither bfloat16 nor the eight-bit floats."""
    for name in names:
        found = file.get_slice(name).get_dtype()
        if found not in _NUMPY_TYPES:
            raise RecipeError(
                f"recipe '{path}'",
                got=f"tensor '{name}' of type {found}",
                expected="float32, or int8 for the levels of weights",
                remedy=f"The file is damaged or was edited. {_RECALIBRATE}",
            )
