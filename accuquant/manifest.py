"""The manifest of an exported folder: accuquant.json, which says what the folder holds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from accuquant._util.facts import FactsError, Real, Sha256, Text, as_facts, read_json
from accuquant._util.files import sha256_of_file, write_text
from accuquant._util.named_file import name_fault, named_file
from accuquant.errors import AccuQuantError, EngineError, UsageError
from accuquant.export_choice import ExportChoice
from accuquant.groups import StepGroups
from accuquant.networks.control_signature import CONTROL_NET
from accuquant.networks.signature import Signature

MANIFEST_NAME = "accuquant.json"
#: The pipeline_class of a generator that makes an image in one call, which no class of diffusers has.
FEED_FORWARD = "FeedForwardPipeline"
RECIPE_NAME = "recipe.safetensors"
FORMAT_VERSION = 1
_REMEDY = "Run `accuquant export` again"
_MOST_STEPS = 10_000


@dataclass(frozen=True)
class Manifest:
    """What an exported folder holds.

    `graphs` lists .onnx paths relative to the folder: one a step group (noisiest first) for the lowering
    "per-group", else one. `component` is the pipeline's attribute that the graphs
    replace ("unet" or "transformer"). `num_inference_steps` is the calibrated number of steps, None where
    the recipe was made without a sampler. `files` maps each relative path to its SHA-256. `choice` says why
    lowering and precision are what they are, where the user did not name both. `text_weights` is how the
    text encoders' weights are stored, where the folder holds them. `decoder` is what the autoencoder's
    decoder computes in: "int8" or "fp8" where it was exported with a recipe of its own. `controls` are the
    folders inside with the graphs of control networks, in the pipeline's order, each with a manifest of
    its own.
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
    num_inference_steps: int | None
    accuquant_version: str
    source: str = ""
    files: dict[str, str] = field(default_factory=dict)
    choice: ExportChoice | None = None
    text_weights: str = "fp32"
    decoder: str = "fp32"
    controls: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        """Write accuquant.json into `folder`, atomically."""
        write_text(folder / MANIFEST_NAME, self.to_json())

    def to_json(self) -> str:
        """Return the text of accuquant.json."""
        data = asdict(self)
        data["format_version"] = FORMAT_VERSION
        data["groups"] = list(self.groups.edges)
        data["signature"] = self.signature.to_dict()
        data["choice"] = self.choice.to_dict() if self.choice else None
        return json.dumps(data, indent=2, sort_keys=True) + "\n"

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read accuquant.json from `folder`. Raises EngineError where it is missing or damaged."""
        path = Path(folder) / MANIFEST_NAME
        try:
            named_file(folder, MANIFEST_NAME, subject=f"folder '{folder}'")
            return cls._from_json(read_json(path))
        except FileNotFoundError:
            raise EngineError(
                f"folder '{folder}'",
                got=f"no {MANIFEST_NAME}",
                expected="a folder that `accuquant export` wrote",
                remedy="Check the path, or export the pipeline first",
            ) from None
        except EngineError:
            raise
        except (AccuQuantError, OSError, FactsError) as fault:
            raise EngineError(
                f"manifest '{path}'",
                got=fault.got if isinstance(fault, AccuQuantError) else str(fault),
                expected="the JSON that `accuquant export` writes",
                remedy=f"The file is damaged. {_REMEDY}",
            ) from fault

    def check_files(self, folder: Path) -> None:
        """Raise EngineError unless every listed file is there with the recorded SHA-256."""
        for name, digest in self.files.items():
            path = self._named(folder, name)
            if not path.is_file():
                got = "no such file"
            elif sha256_of_file(path) != digest:
                got = "other bytes than were exported"
            else:
                continue
            raise EngineError(f"'{path}'", got=got, expected=f"SHA-256 {digest[:12]}...", remedy=_REMEDY)

    def graph_paths(self, folder: Path) -> tuple[Path, ...]:
        """Return the path of each graph in `folder`. Raises EngineError where one leads out of it."""
        return tuple(self._named(folder, graph) for graph in self.graphs)

    @property
    def parts(self) -> tuple[str, ...]:
        """The folders of graphs around the network: text encoders, autoencoder; none of most exports."""
        graphs = (name.split("/") for name in sorted(self.files))
        return tuple(path[0] for path in graphs if path[1:] == ["model.onnx"] and path[0] != self.component)

    def config_path(self, folder: Path) -> Path:
        """Return the path of the network's config.json. Raises EngineError where it leads out of `folder`.

        A control network's folder is its own: its configuration lies beside its graph.
        """
        if self.signature.architecture == CONTROL_NET:
            return self._named(folder, "config.json")
        return self._named(folder, f"{self.component}/config.json")

    def control_folders(self, folder: Path) -> tuple[Path, ...]:
        """Return the folder of each control network's graphs. Raises EngineError where one leads out."""
        return tuple(self._named(folder, f"{name}/{MANIFEST_NAME}").parent for name in self.controls)

    def steps(self, given: int | None = None) -> int:
        """Return the number of sampler steps: `given`, else the calibrated one. Raises UsageError."""
        steps = self.num_inference_steps if given is None else given
        if steps is None:
            raise UsageError(
                "number of steps",
                got="none, and a recipe that was made without a sampler records none",
                expected="how many steps to sample with",
                remedy="Give --steps 50, for example",
            )
        return steps

    @staticmethod
    def _named(folder: Path, name: str) -> Path:
        return named_file(folder, name, subject=f"manifest '{Path(folder) / MANIFEST_NAME}'")

    @classmethod
    def _from_json(cls, data: Any) -> Manifest:
        if not isinstance(data, dict):
            raise FactsError(f"a JSON {type(data).__name__}")
        version = data.get("format_version")
        if version != FORMAT_VERSION or isinstance(version, bool):
            raise EngineError(
                "manifest",
                got=f"format version {version!r}",
                expected=f"version {FORMAT_VERSION}",
                remedy=f"Upgrade AccuQuant. Or: {_REMEDY.lower()}",
            )
        facts = as_facts(data, _ManifestFacts)
        for name in (*facts.graphs, *facts.files, *facts.controls, f"{facts.component}/config.json"):
            if name_fault(name):
                raise FactsError(f"'{name}', {name_fault(name)}")
        signature = Signature.from_dict(facts.signature)
        sizes = signature.sizes | {"batch": 1}
        missing = [d for d in signature.sample.shape if isinstance(d, str) and d not in sizes]
        if missing:  # sampling starts from noise of this shape
            raise FactsError(f"signature: no size for '{missing[0]}' of '{signature.sample.name}'")
        return cls(
            **{
                # vars() lacks what a file left out: msgspec leaves such fields to their class
                **{known.name: getattr(facts, known.name) for known in fields(facts)},
                "groups": StepGroups(facts.groups),
                "signature": signature,
                "choice": None if facts.choice is None else ExportChoice.from_dict(facts.choice),
            }
        )


@dataclass(frozen=True)
class _ManifestFacts:
    """The fields of accuquant.json (docs/export-format.md); later releases may add others."""

    pipeline_class: Text
    component: Annotated[str, Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_]{0,99}\Z")]
    lowering: Text
    precision: Text
    opset: Annotated[int, Meta(ge=1, le=1000)]
    graphs: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=_MOST_STEPS)]
    groups: Annotated[tuple[Real, ...], Meta(max_length=_MOST_STEPS + 1)]
    signature: Any
    model_hash: Text
    accuquant_version: Text
    num_inference_steps: Annotated[int, Meta(ge=1, le=_MOST_STEPS)] | None = None
    source: Text = ""
    files: dict[Text, Sha256] = field(default_factory=dict)
    choice: Any = None
    text_weights: Text = "fp32"
    decoder: Text = "fp32"
    controls: Annotated[tuple[Text, ...], Meta(max_length=64)] = ()
