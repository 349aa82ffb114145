"""The contenders that run the float network in PyTorch: eager, and compiled on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from accuquant.bench.contender import Contender, Device, LeftOut, Precision, attempt
from accuquant.bench.inputs import Inputs
from accuquant.networks.network import call
from accuquant.pipelines.source import Source


def torch_contenders(source: Source, inputs: Inputs) -> Iterator[Contender | LeftOut]:
    """Yield the network of `source` in PyTorch: float32 on the CPU, or float16 on the GPU, also compiled."""
    on_gpu = torch.cuda.is_available()
    device: Device = "cuda" if on_gpu else "cpu"
    precision: Precision = "fp16" if on_gpu else "fp32"
    dtype = torch.float16 if on_gpu else torch.float32
    eager = partial(call, source.network.to(device, dtype))

    def contender(engine: str, function: Callable[..., Tensor]) -> Contender:
        return Contender(engine, precision, device, _TimedCall(function, inputs, device, dtype))

    yield attempt(f"torch {precision}", lambda: contender("torch", eager))
    if on_gpu:
        # Of the function, not of the network: compiling that would change the eager contender as well.
        compiled = torch.compile(eager, mode="max-autotune")
        yield attempt("torch.compile fp16", lambda: contender("torch.compile", compiled))
    else:
        yield LeftOut("torch.compile fp16", "no CUDA device")


class _TimedCall:
    """One call of a network on tensors that are on its device already, until it is done."""

    def __init__(
        self, function: Callable[..., Tensor], inputs: Inputs, device: Device, dtype: torch.dtype
    ) -> None:
        def tensor(array: object) -> Tensor:
            made = torch.as_tensor(array, device=device)
            return made.to(dtype) if made.is_floating_point() else made

        self._function, self._device = function, device
        conditioning = {name: tensor(array) for name, array in inputs.conditioning.items()}
        self._arguments = (tensor(inputs.sample), inputs.timestep, conditioning)

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        output = self._function(*self._arguments)
        if self._device == "cuda":
            torch.cuda.synchronize()
        return output
