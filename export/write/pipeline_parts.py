"""The float parts around a pipeline's network as ONNX, so that Optimum loads the exported folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from accuquant._util.files import write_text
from accuquant.errors import ExportError
from accuquant.export.export_options import TextWeights
from accuquant.export.passes.weight_only import WeightOnlyPass
from accuquant.export.read.trace import trace_module
from accuquant.export.write.graph_files import save_graphs
from accuquant.pipelines.model_index import read_index
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.pipelines.source import Source
from accuquant.pipelines.task import Task

#: The pipelines that Optimum's ORTDiffusionPipeline and OVDiffusionPipeline have a class for.
PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "LatentConsistencyModelPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
)
#: Text encoder -> its outputs, under Optimum's names and in its order. CLIP's hidden states follow.
_TEXT_OUTPUTS = {
    "CLIPTextModel": ("last_hidden_state", "pooler_output"),
    "CLIPTextModelWithProjection": ("text_embeds", "last_hidden_state"),
    "T5EncoderModel": ("last_hidden_state",),
}
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
_COPIED = ("tokenizer", "tokenizer_2", "tokenizer_3", "feature_extractor")
#: Examples are traced with these extents; a smaller one would be taken for a constant.
_BATCH, _TOKENS, _BLOCKS = 2, 8, 4


@dataclass(frozen=True)
class Part:
    """One graph to be: its folder, the folder of its configuration, its names, and an example to trace."""

    folder: str
    configuration: str
    module: nn.Module
    example: Tensor
    dynamic: dict[int, Any]
    inputs: Sequence[str]
    outputs: Sequence[str]


class _TextEncoder(nn.Module):
    """A text encoder that returns the named outputs, then every hidden state where it is asked for them."""

    def __init__(self, encoder: nn.Module, outputs: Sequence[str], *, hidden_states: bool) -> None:
        super().__init__()
        self.encoder, self.outputs, self.hidden_states = encoder, outputs, hidden_states

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        found = self.encoder(input_ids, output_hidden_states=self.hidden_states)
        states = tuple(found["hidden_states"]) if self.hidden_states else ()
        return (*(found[name] for name in self.outputs), *states)


class _Encoder(nn.Module):
    """An autoencoder's encoder: an image [B, C, H, W] -> mean and log-variance of its latents, joined."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, sample: Tensor) -> Tensor:
        parameters: Tensor = self.vae.encode(sample).latent_dist.parameters
        return parameters


class _Decoder(nn.Module):
    """An autoencoder's decoder: latents -> an image in [-1, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: Tensor) -> Tensor:
        image: Tensor = self.vae.decode(latent_sample).sample
        return image


def check_parts(pipeline_class: str) -> None:
    """Raise ExportError where Optimum has no class for the pipelines of `pipeline_class`."""
    if pipeline_class not in PIPELINES:
        raise ExportError(
            f"pipeline {pipeline_class}",
            got="--whole-pipeline",
            expected=" or ".join(PIPELINES),
            remedy="Optimum knows no such pipeline: leave --whole-pipeline out and use EngineUNet",
        )


def write_parts(
    source: Source,
    folder: Path,
    *,
    opset: int = 21,
    external_data: bool | None = None,
    text_weights: TextWeights = "fp32",
    decoder: bool = True,
    say: Callable[[str], None] = lambda _text: None,
) -> None:
    """Write text encoders and autoencoder of `source` into `folder` as graphs; copy its tokenizers.

    Folders, inputs and outputs are named as Optimum names them: text_encoder (and _2, _3), vae_encoder and
    vae_decoder, each with model.onnx and config.json. All compute in float32; `text_weights` is how those of
    text encoders are stored. The decoder is left out unless `decoder`, and always the safety checker. Raises
    ExportError for a pipeline or a part that is not known.
    """
    check_parts(source.pipeline_class)
    pipe = open_pipeline(source, Task())
    parts = [*_text_encoders(pipe), *_autoencoder(pipe)]
    for part in parts if decoder else [part for part in parts if part.folder != "vae_decoder"]:
        say(f"tracing the {part.folder.replace('_', ' ')}")
        model = trace_module(
            part.module,
            (part.example,),
            (part.dynamic,),
            inputs=part.inputs,
            outputs=part.outputs,
            opset=opset,
            name=part.folder,
        )
        if text_weights == "int8" and part.folder in _TEXT_ENCODERS:
            WeightOnlyPass()(model)
        target = folder / part.folder
        target.mkdir()
        save_graphs({"model.onnx": model}, target, "model.onnx_data", external_data=external_data)
        shutil.copyfile(source.folder / part.configuration / "config.json", target / "config.json")
    index = read_index(source.folder)
    index |= {name: [None, None] for name in source.loading.nothing_for_left_out()}
    for name in _COPIED:
        if (index.get(name) or [None])[0] is not None:
            shutil.copytree(source.folder / name, folder / name)
    write_text(folder / "model_index.json", json.dumps(index, indent=2) + "\n")


def _text_encoders(pipe: Any) -> list[Part]:
    found = {name: getattr(pipe, name, None) for name in _TEXT_ENCODERS}
    return [text_encoder_part(name, encoder) for name, encoder in found.items() if encoder is not None]


def text_encoder_part(name: str, encoder: Any) -> Part:
    """Return the graph to be of a text encoder that is called `name`. Raises ExportError for other kinds."""
    outputs = _TEXT_OUTPUTS.get(type(encoder).__name__)
    if outputs is None:
        raise _unknown(name, encoder, _TEXT_OUTPUTS)
    states = [] if "T5" in type(encoder).__name__ else range(encoder.config.num_hidden_layers + 1)
    return Part(
        folder=name,
        configuration=name,
        module=_TextEncoder(encoder, outputs, hidden_states=bool(states)),
        example=torch.zeros(_BATCH, _TOKENS, dtype=torch.int64),
        dynamic={0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},
        inputs=["input_ids"],
        outputs=[*outputs, *(f"hidden_states.{k}" for k in states)],
    )


def _autoencoder(pipe: Any) -> list[Part]:
    vae = pipe.vae
    if type(vae).__name__ != "AutoencoderKL":
        raise _unknown("vae", vae, ["AutoencoderKL"])
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    side = factor * _BLOCKS
    batch = torch.export.Dim.DYNAMIC
    pixels = {
        axis: factor * torch.export.Dim(name, min=2)
        for axis, name in ((2, "height_blocks"), (3, "width_blocks"))
    }
    return [
        Part(
            folder="vae_encoder",
            configuration="vae",
            module=_Encoder(vae),
            example=torch.zeros(_BATCH, vae.config.in_channels, side, side),
            dynamic={0: batch, **pixels},
            inputs=["sample"],
            outputs=["latent_parameters"],
        ),
        Part(
            folder="vae_decoder",
            configuration="vae",
            module=_Decoder(vae),
            example=torch.zeros(_BATCH, vae.config.latent_channels, _BLOCKS, _BLOCKS),
            dynamic={0: batch, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},
            inputs=["latent_sample"],
            outputs=["sample"],
        ),
    ]


def _unknown(part: str, found: Any, known: Any) -> ExportError:
    return ExportError(
        f"{part} of the pipeline",
        got=type(found).__name__,
        expected=" or ".join(known),
        remedy="Leave --whole-pipeline out: the network alone can be exported",
    )
