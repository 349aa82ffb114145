"""The manifest of an exported folder: accuquant.json, which says what the folder holds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accuquant._util.files import sha256_of_file, write_text
from accuquant.errors import AccuQuantError, EngineError
from accuquant.export_choice import ExportChoice
from accuquant.groups import StepGroups
from accuquant.networks.signature import Signature

MANIFEST_NAME = "accuquant.json"
RECIPE_NAME = "recipe.safetensors"
FORMAT_VERSION = 1
_REMEDY = "Run `accuquant export` again"


@dataclass(frozen=True)
class Manifest:
    """What an exported folder holds.

    `graphs` lists .onnx paths relative to the folder: one a step group (noisiest first) for the lowering
    "per-group", else one. `component` is the pipeline's attribute that the graphs
    replace ("unet" or "transformer"). `num_inference_steps` is the calibrated number of steps.
    `files` maps each relative path to its SHA-256. `choice` says why lowering and precision are what they
    are, where the user did not name both.
    """

    pipeline_class: str
    component: str
    lowering: str
    precision: str
    opset: int
    graphs: tuple[str, ...]
    groups: StepGroups
    signature: Signature
    model_hash: str
    num_inference_steps: int
    accuquant_version: str
    source: str = ""
    files: dict[str, str] = field(default_factory=dict)
    choice: ExportChoice | None = None

    def save(self, folder: Path) -> None:
        """Write accuquant.json into `folder`, atomically."""
        data = asdict(self)
        data["format_version"] = FORMAT_VERSION
        data["groups"] = list(self.groups.edges)
        data["signature"] = self.signature.to_dict()
        data["choice"] = self.choice.to_dict() if self.choice else None
        write_text(folder / MANIFEST_NAME, json.dumps(data, indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read accuquant.json from `folder`. Raises EngineError where it is missing or damaged."""
        path = Path(folder) / MANIFEST_NAME
        try:
            return cls._from_dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise EngineError(
                f"folder '{folder}'",
                got=f"no {MANIFEST_NAME}",
                expected="a folder that `accuquant export` wrote",
                remedy="Check the path, or export the pipeline first",
            ) from None
        except EngineError:
            raise
        except (AccuQuantError, OSError, KeyError, TypeError, ValueError) as fault:
            raise EngineError(
                f"manifest '{path}'",
                got=fault.got if isinstance(fault, AccuQuantError) else f"{type(fault).__name__}: {fault}",
                expected="the JSON that `accuquant export` writes",
                remedy=f"The file is damaged. {_REMEDY}",
            ) from fault

    def check_files(self, folder: Path) -> None:
        """Raise EngineError unless every listed file is there with the recorded SHA-256."""
        for name, digest in self.files.items():
            path = Path(folder) / name
            if not path.is_file():
                got = "no such file"
            elif sha256_of_file(path) != digest:
                got = "other bytes than were exported"
            else:
                continue
            raise EngineError(f"'{path}'", got=got, expected=f"SHA-256 {digest[:12]}...", remedy=_REMEDY)

    @classmethod
    def _from_dict(cls, data: Any) -> Manifest:
        if not isinstance(data, dict):
            raise TypeError(f"a JSON {type(data).__name__}")
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            raise EngineError(
                "manifest",
                got=f"format version {version!r}",
                expected=f"version {FORMAT_VERSION}",
                remedy=f"Upgrade AccuQuant. Or: {_REMEDY.lower()}",
            )
        fields = {key: value for key, value in data.items() if key != "format_version"}
        fields["groups"] = StepGroups(tuple(fields["groups"]))
        fields["signature"] = Signature.from_dict(fields["signature"])
        fields["graphs"] = tuple(str(graph) for graph in fields["graphs"])
        if fields.get("choice") is not None:  # manifests of earlier exports have none
            fields["choice"] = ExportChoice.from_dict(fields["choice"])
        return cls(**fields)
