"""A text encoder of a pipeline in an engine, with the face of transformers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from accuquant.errors import UsageError
from accuquant.runtime.engine_part import EnginePart
from accuquant.runtime.runner import Runner

#: The exported graph calls its hidden states hidden_states.0, hidden_states.1, ...
_STATES = "hidden_states."


class EngineTextEncoder(EnginePart, PreTrainedModel):  # type: ignore[no-untyped-call]
    """An exported text encoder: token ids in, embeddings and hidden states out.

    It is a PreTrainedModel so that `DiffusionPipeline.from_pretrained(source, text_encoder=...)` takes it.
    """

    def __init__(self, runner: Runner, config: Any) -> None:
        PreTrainedModel.__init__(self, config)
        self.hold({"encoder": runner})

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Encode ids [B, T] as the original. Raises UsageError for a mask, which the graph does not take."""
        if attention_mask is not None:
            raise UsageError(
                "attention_mask of the text encoder",
                got="a mask",
                expected="None: the exported graph has no input for it",
                remedy="Run the text encoder in torch: --parts torch",
            )
        outputs = self.run("encoder", input_ids)
        states = tuple(outputs.pop(name) for name in list(outputs) if name.startswith(_STATES))
        shown: dict[str, Any] = {"hidden_states": states} if output_hidden_states else {}
        found: Any = ModelOutput(**outputs, **shown)  # type: ignore[no-untyped-call]
        return found.to_tuple() if return_dict is False else found
