"""The recipe: what calibration learned, as one safetensors file, and the only channel between stages."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from accuquant._util.files import atomic_write
from accuquant.errors import AccuQuantError, RecipeError
from accuquant.groups import StepGroups
from accuquant.networks.signature import Signature
from accuquant.qparams import FloatArray, LayerQParams, fingerprint

FORMAT_VERSION = 1
_METADATA_KEY = "accuquant"
_RECALIBRATE = "Run `accuquant calibrate` again"


@dataclass(frozen=True)
class GroupResult:
    """What calibration did in one step group: the loss before and after, and how it ended.

    `status` is "learned", "initial" (no iteration asked for) or "rolled_back" (the loss diverged or
    turned NaN, and the group keeps its initial scales); `note` says why.
    """

    initial_loss: float
    final_loss: float
    status: str = "learned"
    note: str = ""


@dataclass(frozen=True)
class Recipe:
    """Quantization parameters of one denoising network, with all that is needed to reuse them.

    `layers` maps a module name to its LayerQParams; layers that are not in it stay float. `scheduler`
    is the diffusers configuration that was simulated, `model_hash` names the float weights,
    `calibration` holds the settings (JSON values only), `results` one GroupResult a step group.
    """

    groups: StepGroups
    layers: dict[str, LayerQParams]
    signature: Signature
    scheduler: dict[str, Any]
    model_hash: str
    calibration: dict[str, Any] = field(default_factory=dict)
    results: tuple[GroupResult, ...] = ()

    def __post_init__(self) -> None:
        for layer in self.layers.values():
            if layer.activation_scale.shape != (len(self.groups),):
                raise RecipeError(
                    f"layer '{layer.name}'",
                    got=f"activation scale of shape {layer.activation_scale.shape}",
                    expected=f"({len(self.groups)},): one scale for each step group",
                    remedy=_RECALIBRATE,
                )

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
            temporary.write_bytes(self._serialized())

    def sha256(self) -> str:
        """Return the SHA-256 of the file that `save` writes, as 64 hex digits."""
        return hashlib.sha256(self._serialized()).hexdigest()

    def _serialized(self) -> bytes:
        from safetensors.numpy import save

        metadata = json.dumps(self._metadata(), sort_keys=True, allow_nan=True)
        return save(self._tensors(), metadata={_METADATA_KEY: metadata})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read and validate a recipe file. Raises RecipeError on anything that is not one."""
        tensors, metadata = _read(Path(path))
        try:
            return cls._assemble(tensors, metadata)
        except RecipeError:
            raise
        except (AccuQuantError, KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise RecipeError(
                f"recipe '{path}'",
                got=error.got if isinstance(error, AccuQuantError) else f"{type(error).__name__}: {error}",
                expected="the fields and tensors that `accuquant calibrate` writes",
                remedy=f"The file is damaged. {_RECALIBRATE}",
            ) from error

    def _tensors(self) -> dict[str, npt.NDArray[Any]]:
        tensors: dict[str, npt.NDArray[Any]] = {}
        for name, layer in self.layers.items():
            tensors[f"{name}.weight_scale"] = np.ascontiguousarray(layer.weight_scale, np.float32)
            tensors[f"{name}.activation_scale"] = np.ascontiguousarray(layer.activation_scale, np.float32)
            if layer.weight_levels is not None:
                tensors[f"{name}.weight_levels"] = np.ascontiguousarray(layer.weight_levels)
            if layer.bias_correction is not None:
                tensors[f"{name}.bias_correction"] = np.ascontiguousarray(layer.bias_correction)
        return tensors

    def _metadata(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
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
    def _assemble(cls, tensors: dict[str, npt.NDArray[Any]], metadata: dict[str, Any]) -> Recipe:
        return cls(
            groups=StepGroups(tuple(metadata["group_edges"])),
            layers={item["name"]: _layer(item, tensors) for item in metadata["layers"]},
            signature=Signature.from_dict(metadata["signature"]),
            scheduler=dict(metadata["scheduler"]),
            model_hash=str(metadata["model_hash"]),
            calibration=dict(metadata["calibration"]),
            results=tuple(GroupResult(**item) for item in metadata["results"]),
        )


def _layer(item: dict[str, Any], tensors: dict[str, npt.NDArray[Any]]) -> LayerQParams:
    name = str(item["name"])

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
        kind=str(item["kind"]),
        weight_shape=tuple(int(n) for n in item["weight_shape"]),
        fingerprint=str(item["fingerprint"]),
        weight_scale=tensor("weight_scale"),
        activation_scale=tensor("activation_scale"),
        weight_bits=int(item["weight_bits"]),
        activation_bits=int(item["activation_bits"]),
        zero_point=int(item["zero_point"]),
        weight_levels=tensor("weight_levels") if item["weight_levels"] else None,
        bias_correction=tensor("bias_correction") if item["bias_correction"] else None,
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
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = json.loads((file.metadata() or {}).get(_METADATA_KEY, "null"))
            # a checkpoint may hold bfloat16, which numpy cannot read
            keys = file.keys() if isinstance(metadata, dict) else ()
            tensors = {key: file.get_tensor(key) for key in keys}
    except (SafetensorError, ValueError, TypeError, OSError) as fault:
        raise error(
            f"an unreadable file ({fault})", "a safetensors file", f"The file is damaged. {_RECALIBRATE}"
        ) from fault
    if not isinstance(metadata, dict):
        raise error(
            "safetensors without AccuQuant metadata",
            "a recipe",
            "Pass the file that `accuquant calibrate -o` wrote, not a checkpoint",
        )
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise error(
            f"format version {version!r}",
            f"version {FORMAT_VERSION}",
            "Upgrade AccuQuant, or calibrate again with this version",
        )
    return tensors, metadata
