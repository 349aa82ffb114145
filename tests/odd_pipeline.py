"""A pipeline that AccuQuant has never heard of, whose network has unusual arguments.

Only classes of diffusers are loaded from a folder; `installed` makes these such for a while.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from tiny_pipelines import clip, seeded, vae
from torch import Tensor, nn


class OddCanvasModel(ModelMixin, ConfigMixin):  # type: ignore[misc]  # as diffusers' own networks
    """Paints on `canvas` [B, 4, H, W], counts its time from 1 down, and returns a plain tensor."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, width: int = 24, words: int = 16) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4, width, 3, padding=1)
        self.when = nn.Linear(1, width)
        self.read = nn.Linear(words, width)
        self.look = nn.Linear(width, width)
        self.place = nn.Linear(2, width)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.mix = nn.Conv2d(width, width, 1)
        self.leave = nn.Conv2d(width, 4, 3, padding=1)

    def forward(
        self,
        canvas: Tensor,
        *,
        moment: Tensor,
        told: dict[str, Tensor],
        grid: tuple[Tensor, Tensor],
        gain: float,
    ) -> Tensor:
        """Return what is to be taken off the noise; `told` has "words" [B, T, D] and "heard" [B, T]."""
        x = self.enter(canvas) + self.when(moment[:, None])[:, :, None, None]
        rows, columns = grid
        at = torch.stack(
            [rows[:, None].expand(-1, columns.shape[0]), columns.expand(rows.shape[0], -1)], dim=-1
        )
        x = x + self.place(at).permute(2, 0, 1)
        heard = told["heard"].to(x.dtype)[..., None]
        words = self.read(told["words"]) * heard
        seen = self.look(words.sum(1) / heard.sum(1))
        x = x + gain * self.middle(torch.nn.functional.silu(x + seen[:, :, None, None]))
        return self.leave(torch.nn.functional.silu(self.mix(x)))


class OddCanvasPipeline(diffusers.DiffusionPipeline):
    """Samples with it: guided, and the scheduler gets the opposite of what the network returns."""

    #: The guidance scale of the last step, where it is another.
    late_scale: float | None = None
    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def __init__(self, vae: Any, text_encoder: Any, tokenizer: Any, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            transformer=transformer,
            scheduler=scheduler,
        )
        self.vae_scale_factor = 2

    def told(self, words: Tensor, heard: Tensor) -> dict[str, Tensor]:
        """Return what a step tells the network."""
        return {"words": words, "heard": heard}

    @torch.no_grad()
    def __call__(
        self,
        prompt: list[str],
        negative_prompt: list[str] | None = None,
        height: int = 16,
        width: int = 16,
        num_inference_steps: int = 4,
        guidance_scale: float = 3.0,
        generator: Any = None,
        output_type: str = "np",
    ) -> Any:
        """Return images for prompts."""
        guided = guidance_scale > 1
        texts = [*(negative_prompt or [""] * len(prompt)), *prompt] if guided else prompt
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        words, heard = self.text_encoder(tokens.input_ids)[0], tokens.attention_mask.bool()
        shape = (len(prompt), 4, height // 2, width // 2)
        latents = randn_tensor(shape, generator=generator)
        grid = (torch.arange(shape[2]) / 8, torch.arange(shape[3]) / 8)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            scale = (
                self.late_scale if t == self.scheduler.timesteps[-1] and self.late_scale else guidance_scale
            )
            canvas = torch.cat([latents] * 2) if guided else latents
            moment = (1000 - t.expand(len(canvas))) / 1000
            taken = self.transformer(canvas, moment=moment, told=self.told(words, heard), grid=grid, gain=0.5)
            if guided:
                without, given = taken.chunk(2)
                taken = without + scale * (given - without)
            latents = self.scheduler.step(-taken, t, latents, return_dict=False)[0]
        if output_type == "latent":
            return SimpleNamespace(images=latents)
        images = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        pixels = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return SimpleNamespace(images=pixels.numpy())


@contextmanager
def installed() -> Iterator[None]:
    """Let diffusers have the two classes inside the block."""
    classes = (OddCanvasModel, OddCanvasPipeline)
    own = OddCanvasModel.__module__
    try:
        for cls in classes:
            cls.__module__ = "diffusers.odd"
            setattr(diffusers, cls.__name__, cls)
        yield
    finally:
        for cls in classes:
            cls.__module__ = own
            delattr(diffusers, cls.__name__)


def save_odd_pipeline(folder: Path) -> Path:
    """Save the pipeline inside `folder` and return where."""
    tokenizer, encoder = clip(folder)
    pipe = OddCanvasPipeline(
        vae(), encoder, tokenizer, seeded(0, OddCanvasModel),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip
    pipe.save_pretrained(folder / "pipeline")
    return folder / "pipeline"
