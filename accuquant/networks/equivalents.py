"""Forwards that compute what a network computes, with shapes that no value decides: what a graph can have.

Some transformers of diffusers cut every row of a batch to the length of its prompt, in Python. A graph has
one shape for the batch, so here rows are padded and masked. The pipeline calls its network as ever.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from accuquant.errors import SourceError
from accuquant.networks import lumina2_forward, qwen_image_forward, z_image_forward

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Equivalent:
    """What takes the place of a network's forward.

    `arguments` makes those of `forward` of the pipeline's own. `masks`: tensor -> its mask [batch, tokens];
    rows behind the mask are padding, so prompts of several lengths are one batch. `one_size`: a graph is
    made for one size of the image. `idle`: the layers whose outputs nothing reads; a graph has none of them.
    """

    forward: Callable[..., Tensor]
    arguments: Callable[[Arguments], Arguments] = lambda given: given
    masks: Mapping[str, str] = field(default_factory=dict)
    one_size: bool = False
    idle: Callable[[Any], frozenset[str]] = lambda _network: frozenset()

    @property
    def padded(self) -> frozenset[str]:
        """The names of the tensors that have the tokens of a prompt on axis 1."""
        return frozenset(self.masks) | frozenset(self.masks.values())


#: diffusers class -> what computes the same.
EQUIVALENTS: dict[str, Equivalent] = {
    "Lumina2Transformer2DModel": Equivalent(
        lumina2_forward.forward, masks={"encoder_hidden_states": "encoder_attention_mask"}
    ),
    "QwenImageTransformer2DModel": Equivalent(
        qwen_image_forward.forward,
        qwen_image_forward.arguments,
        {"encoder_hidden_states": "encoder_hidden_states_mask"},
        idle=qwen_image_forward.idle_layers,
    ),
    "ZImageTransformer2DModel": Equivalent(
        z_image_forward.forward, z_image_forward.arguments, {"cap_feats": "cap_feats_mask"}, one_size=True
    ),
}


def idle_layers(network: nn.Module) -> frozenset[str]:
    """Return the names of the layers of a network whose outputs nothing reads."""
    known = EQUIVALENTS.get(type(network).__name__)
    return frozenset() if known is None else known.idle(network)


def equivalent_arguments(architecture: str, given: Arguments) -> Arguments:
    """Return the arguments of a pipeline's call as the network's equivalent takes them."""
    known = EQUIVALENTS.get(architecture)
    return given if known is None else known.arguments(given)


@contextmanager
def fixed_shapes(network: nn.Module) -> Iterator[None]:
    """Let `network` be called with the arguments of its equivalent inside the block, where it has one."""
    known = EQUIVALENTS.get(type(network).__name__)
    if known is None:
        yield
        return
    forward = known.forward
    accepted = inspect.signature(forward).parameters

    def answer(*, return_dict: bool = True, **arguments: Any) -> Any:
        # a pipeline passes None, or an empty dict, for what it does not use
        further = [k for k, v in arguments.items() if k not in accepted and (isinstance(v, Tensor) or v)]
        if further:
            raise SourceError(
                f"network {type(network).__name__}",
                got=f"{', '.join(further)} among its arguments",
                expected=f"{', '.join(list(accepted)[1:])}: its forward with fixed shapes knows no others",
                remedy="Switch off what the pipeline adds",
            )
        prediction = forward(network, **{k: v for k, v in arguments.items() if k in accepted})
        return SimpleNamespace(sample=prediction) if return_dict else (prediction,)

    vars(network)["forward"] = answer
    try:
        yield
    finally:
        del vars(network)["forward"]
