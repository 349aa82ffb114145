"""Trace a denoising network into a float ONNX graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from accuquant.errors import ExportError
from accuquant.export.read.small_addends import small_addends_kept
from accuquant.graph.vocabulary import SIGNATURE_KEY
from accuquant.networks.complex_in_reals import complex_in_reals
from accuquant.networks.control_signature import side_factor
from accuquant.networks.image_sides import multiple_of
from accuquant.networks.network import call_directly
from accuquant.networks.signature import Signature, TensorSpec
from accuquant.networks.stored_weights import widened
from accuquant.pipelines.diffusers_internals import every_size

_SPATIAL = ("height", "width")


class _Positional(nn.Module):
    """A network called with positional tensors, in the order of the signature."""

    def __init__(self, network: nn.Module, signature: Signature, *, shared: bool = False) -> None:
        super().__init__()
        self.network = network
        self.shared = shared
        self.names = [spec.name for spec in signature.conditioning]

    def forward(self, sample: Tensor, timestep: Tensor, *conditioning: Tensor) -> Tensor:
        # One timestep is shared by the batch, so an array of any length is read at its first element.
        first = timestep[:1] if timestep.ndim else timestep
        named = dict(zip(self.names, conditioning, strict=True))
        return call_directly(self.network, sample, first, named, shared=self.shared)


def trace(network: nn.Module, signature: Signature, *, opset: int = 21, dynamic: bool = True) -> ir.Model:
    """Export `network` with torch.onnx -> an onnx-ir model with the signature's input and output names.

    With `dynamic` every named extent of the signature may vary; else they are the signature's sizes.
    Images may have every size that the network takes: where its levels do not divide a side, it upsamples to
    the size of the skip connection. The model refers to the network's own weights without a copy; what is
    held in half precision becomes float32. What a captured signature says may vary does so as far as torch
    can trace it; the graph's meta holds what came of it. Raises ExportError where torch cannot trace the
    network.
    """
    config = getattr(network, "config", {})
    sizes = example_sizes(signature, config) if dynamic else dict(signature.sizes)
    example = tuple(example_of(spec, sizes) for spec in signature.inputs)
    multiple = multiple_of(signature, config)

    def traced(*, shared: bool = False) -> ir.Model:
        return trace_module(
            _Positional(widened(network), signature, shared=shared),
            example,
            dynamic_shapes(signature, multiple) if dynamic else None,
            inputs=[spec.name for spec in signature.inputs],
            outputs=[signature.output.name],
            opset=opset,
            name=type(network).__name__,
        )

    # beside a control network, each level has an input of its own size: all sides are halved evenly
    with every_size(network) if dynamic and multiple == 1 else nullcontext(), complex_in_reals():
        model = traced()
        if dynamic and "batch" in _fixed(model.graph, signature):
            # Chroma makes a list of as many numbers as the timestep has rows: one row is one for every batch
            model = traced(shared=True)
    if dynamic and signature.call is not None:
        signature = model.graph.meta[SIGNATURE_KEY] = _as_traced(model.graph, signature, sizes)
    declare(model.graph, [*signature.inputs, signature.output], sizes, dynamic=dynamic)
    return model


def _fixed(graph: ir.Graph, signature: Signature) -> set[str]:
    """Return the names of the extents of which torch has made constants: numbers, or symbols called "2"."""
    return {
        extent
        for value, spec in zip(graph.inputs, signature.inputs, strict=True)
        for extent, traced in zip(spec.shape, value.shape or (), strict=True)
        if isinstance(extent, str) and str(traced).isdecimal()
    }


def _as_traced(graph: ir.Graph, signature: Signature, sizes: dict[str, int]) -> Signature:
    """Return `signature` with numbers for the extents of which torch has made constants.

    Positions that a network computes in Python from an image's size are such. Raises ExportError where the
    batch is.
    """
    fixed = _fixed(graph, signature)
    if "batch" in fixed:
        raise ExportError(
            f"network {signature.architecture}",
            got="a computation that is made for one size of the batch",
            expected="a network that computes every row of a batch alike",
            remedy="Export fixed sizes with --no-dynamic, and sample in batches of that size",
        )

    def settled(spec: TensorSpec) -> TensorSpec:
        return replace(spec, shape=tuple(sizes[d] if d in fixed else d for d in spec.shape))

    return replace(
        signature,
        sample=settled(signature.sample),
        conditioning=tuple(map(settled, signature.conditioning)),
        output=settled(signature.output),
        sizes={name: size for name, size in signature.sizes.items() if name not in fixed},
    )


def trace_module(
    module: nn.Module,
    example: tuple[Tensor, ...],
    dynamic_shapes: tuple[Any, ...] | None,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    opset: int,
    name: str,
) -> ir.Model:
    """Export a module that takes and returns positional tensors -> an onnx-ir model with these names.

    `dynamic_shapes` is torch.export's; `name` is what errors call the module. Raises ExportError where torch
    cannot trace it.
    """
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(module.eval(), example, dynamic_shapes=dynamic_shapes, strict=False)
            _drop_idle_squeezes(program)
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=list(outputs),
                optimize=False,
                verbose=False,
            )
            assert exported is not None, "torch.onnx.export returns a program where it is given no file"
            with small_addends_kept(exported.model.graph):
                exported.optimize()
    except Exception as fault:  # torch raises many unrelated kinds, with pages of text
        raise _cannot_trace(name, fault) from fault
    model: ir.Model = exported.model
    return model


def _drop_idle_squeezes(program: torch.export.ExportedProgram) -> None:
    """Remove squeezes of an extent that is not 1: torch ignores them, ONNX refuses them (PixArt has one)."""
    for node in list(program.graph.nodes):
        if node.target is not torch.ops.aten.squeeze.dim:
            continue
        extent = node.args[0].meta["val"].shape[node.args[1]]
        if isinstance(extent, int) and extent != 1:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)


def example_sizes(signature: Signature, config: Any) -> dict[str, int]:
    """Return the default sizes, at least 2 on every level: torch.export takes a 1 for a constant.

    Those of a captured signature, but for the batch, are what further arguments of the call were made for.
    Beside a control network, sides are multiples of what its levels halve.
    """
    derived = _derived(signature)
    if signature.call is not None and not derived:
        return signature.sizes | {"batch": 2, "steps": 2}
    deepest = 2 ** max(1, len(config.get("down_block_types") or ()))
    sizes = {name: max(size, deepest if name in _SPATIAL else 2) for name, size in signature.sizes.items()}
    if derived:
        half = deepest // 2
        sizes |= {side: -(-sizes[side] // half) * half for side in _SPATIAL}
        sizes |= {extent: sizes[side] * up // down for extent, (side, up, down) in derived.items()}
    return sizes


def _derived(signature: Signature) -> dict[str, tuple[str, int, int]]:
    """Return the extents that follow from the sample's sides, each with its side and its share of it."""
    sizes = signature.sizes
    pixels = sizes["control_height"] // sizes["height"] if "control_height" in sizes else 1
    found = {extent: side_factor(extent, pixels) for extent in sizes}
    return {extent: share for extent, share in found.items() if share is not None}


def example_of(spec: TensorSpec, sizes: dict[str, int]) -> Tensor:
    """Return zeros of the shape of `spec`."""
    return torch.zeros(spec.resolve(sizes), dtype=getattr(torch, spec.dtype))


def dynamic_shapes(signature: Signature, multiple: int) -> tuple[Any, ...]:
    """Return torch.export's dynamic_shapes for the forward of _Positional; `multiple` divides image sides."""
    derived = _derived(signature)
    # torch may make constants of what was only seen to vary in a pipeline
    seen = signature.call is not None and not derived
    vary = torch.export.Dim.AUTO if seen else torch.export.Dim.DYNAMIC
    blocks = {side: torch.export.Dim(f"{side}_blocks", min=2) for side in _SPATIAL}

    def dim(extent: str) -> Any:
        side, up, down = derived.get(extent, (extent, 1, 1))
        if side not in _SPATIAL or (multiple == 1 and not derived):
            return vary
        factor = multiple * up // down
        return blocks[side] if factor == 1 else factor * blocks[side]

    def extents(spec: TensorSpec) -> dict[int, Any]:
        return {axis: dim(extent) for axis, extent in enumerate(spec.shape) if isinstance(extent, str)}

    sample, timestep, *conditioning = [extents(spec) for spec in signature.inputs]
    # torch.export names the rest *conditioning as one argument, and wants no entry where it is empty.
    return (sample, timestep, tuple(conditioning)) if conditioning else (sample, timestep)


def declare(graph: ir.Graph, specs: Sequence[TensorSpec], sizes: dict[str, int], *, dynamic: bool) -> None:
    """Write the shapes of `specs` on the inputs and the outputs, in place of torch's expressions."""
    for value, spec in zip([*graph.inputs, *graph.outputs], specs, strict=True):
        value.shape = ir.Shape(spec.shape if dynamic else spec.resolve(sizes))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what torch.onnx says about optional packages and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _cannot_trace(name: str, fault: Exception) -> ExportError:
    lines = [line for line in str(fault).splitlines() if line.strip()]
    return ExportError(
        f"network {name}",
        got=f"{type(fault).__name__} from torch.onnx.export: {lines[0][:200] if lines else ''}",
        expected="a network that torch.export can trace",
        remedy="Run with --debug for torch's own report, or export fixed sizes with --no-dynamic",
    )
