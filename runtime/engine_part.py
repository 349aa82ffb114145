"""A float part of a pipeline that is computed by graphs in an engine: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from accuquant.errors import UsageError
from accuquant.runtime.loop_profile import LoopProfile, counted
from accuquant.runtime.runner import Runner


class EnginePart:
    """What text encoders and autoencoders in an engine have in common; a mixin for a torch Module.

    A graph is loaded when it is first called. Outputs have the dtype and the device that the pipeline has.
    """

    engine: str
    #: Where it is set, compiling is counted there as "loading".
    profile: LoopProfile | None = None
    _runners: dict[str, Runner]
    _anchor: nn.Parameter

    def hold(self, runners: Mapping[str, Runner]) -> None:
        """Take the runners, by the names of their graphs; call it in the constructor, behind Module's."""
        self.engine = next(iter(runners.values())).engine
        self._runners = dict(runners)
        # Follows pipe.to(device, dtype) as a weight would.
        self._anchor = nn.Parameter(torch.empty(0), requires_grad=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the pipeline works in."""
        return self._anchor.dtype

    @property
    def device(self) -> torch.device:
        """The device that the pipeline works on; the engine has its own."""
        return self._anchor.device

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: the engine holds no weights that could be stored."""
        raise UsageError(
            f"{type(self).__name__}.save_pretrained",
            got="a compiled engine",
            expected="the exported folder itself",
            remedy="Copy the exported folder",
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Refuse: an engine and its memory cannot be copied."""
        raise UsageError(
            f"copy.deepcopy({type(self).__name__})",
            got="a compiled engine",
            expected="one part that pipelines share, or a second one from the folder",
            remedy="Call engine_parts(folder) again",
        )

    def run(self, graph: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run a graph of one input on `tensor` -> its outputs by name, as the pipeline wants them."""
        runner = self._runners[graph]
        with counted(self.profile, "loading"):
            runner.activate()
        (spec,) = runner.input_specs
        feeds = {spec.name: tensor.detach().to("cpu", getattr(torch, spec.dtype)).contiguous().numpy()}
        with counted(self.profile, "loading"):
            runner.prepare(feeds)
        outputs = runner.infer(feeds)
        return {name: torch.from_numpy(value).to(self.device, self.dtype) for name, value in outputs.items()}


def engine_of(part: object) -> str | None:
    """Return the engine that computes a part of a pipeline; None where torch does."""
    return part.engine if isinstance(part, EnginePart) else None
