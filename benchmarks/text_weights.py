"""Measure text encoders with int8 weights: their file, how far their embeddings move, and their time.

    python benchmarks/text_weights.py --encoder clip-l

The encoder has the size of a real one, with random weights (normal, as transformers initializes them), unless
--folder names a trained one. "moved" is |int8 - fp32| / |fp32| of the last hidden states of random tokens,
"ms" of one prompt of 77 tokens; both files run in turn in one process.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import add_json_option, print_report

from accuquant._util.interleave import time_interleaved
from accuquant.export.passes.weight_only import WeightOnlyPass
from accuquant.export.read.trace import trace_module
from accuquant.export.write.graph_files import save_graphs
from accuquant.export.write.pipeline_parts import text_encoder_part
from accuquant.runtime.open_runner import make_runner

_TOKENS, _VOCABULARY = 77, 32000


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", choices=("clip-l", "t5-base"), default="clip-l")
    parser.add_argument("--folder", type=Path, help="a text encoder's folder, in place of random weights")
    parser.add_argument(
        "--engines", nargs="+", choices=("openvino", "onnxruntime"), default=["openvino", "onnxruntime"]
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    add_json_option(parser)
    return parser.parse_args()


def encoder(name: str, folder: Path | None) -> Any:
    """Return the text encoder that is measured."""
    import transformers

    torch.manual_seed(0)
    if name == "clip-l":
        if folder is not None:
            return transformers.CLIPTextModel.from_pretrained(folder, local_files_only=True)
        return transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768
            )
        )
    if folder is not None:
        return transformers.T5EncoderModel.from_pretrained(folder, local_files_only=True)
    return transformers.T5EncoderModel(
        transformers.T5Config(
            d_model=768, d_ff=2048, num_layers=12, num_heads=12, feed_forward_proj="gated-gelu"
        )
    )


def write(module: Any, folder: Path) -> dict[str, Path]:
    """Write the encoder with float32 and with int8 weights -> their files."""
    part = text_encoder_part("text_encoder", module)
    paths = {}
    for weights in ("fp32", "int8"):
        model = trace_module(
            part.module, (part.example,), (part.dynamic,),
            inputs=part.inputs, outputs=part.outputs, opset=21, name=part.folder,
        )  # fmt: skip
        if weights == "int8":
            WeightOnlyPass()(model)
        (folder / weights).mkdir()
        save_graphs({"model.onnx": model}, folder / weights, "model.onnx_data")
        paths[weights] = folder / weights / "model.onnx"
    return paths


def measure(paths: dict[str, Path], engine: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return how far embeddings move and the time of a prompt, with both files in turn."""
    ids = np.random.default_rng(0).integers(0, _VOCABULARY, (1, _TOKENS))
    runners = {name: make_runner(path, engine, num_threads=arguments.threads) for name, path in paths.items()}
    for runner in runners.values():
        runner.activate()

    def states(name: str) -> Any:
        (spec,) = runners[name].input_specs
        return runners[name].infer({spec.name: ids})["last_hidden_state"].copy()

    exact, rounded = states("fp32"), states("int8")
    times = time_interleaved(
        {name: partial(states, name) for name in runners}, rounds=arguments.rounds, warm_up=1
    )
    for runner in runners.values():
        runner.deactivate()
    return {
        "moved": float(np.linalg.norm(rounded - exact) / np.linalg.norm(exact)),
        **{name: times[name].median for name in times},
    }


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        paths = write(encoder(arguments.encoder, arguments.folder), Path(folder))
        sizes = {
            name: sum(f.stat().st_size for f in path.parent.iterdir()) / 1e6 for name, path in paths.items()
        }
        found = {engine: measure(paths, engine, arguments) for engine in arguments.engines}
    rows = [
        [engine, f"{sizes['fp32']:.0f} -> {sizes['int8']:.0f} MB", f"{f['moved']:.2%}",
         f"{f['fp32']:.0f}", f"{f['int8']:.0f}", f"{f['fp32'] / f['int8']:.2f}"]
        for engine, f in found.items()
    ]  # fmt: skip
    print_report(
        f"{arguments.encoder}, {arguments.threads} threads",
        ["engine", "files", "moved", "fp32 ms", "int8 ms", "times fp32"],
        rows,
        record={"sizes_mb": sizes, "engines": found},
        json_path=arguments.json,
    )


if __name__ == "__main__":
    main()
