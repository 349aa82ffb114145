"""The trained networks that the fidelity study runs on, and what each of them is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accuquant.bundled import EMOJI_DIT, EMOJI_UNET, FASHION_DDPM, FASHION_TEXT
from accuquant.pipelines.task import Task


@dataclass(frozen=True)
class StudiedNetwork:
    """A pipeline, the steps that it is sampled with, and files of prompts: to calibrate with, to judge by.

    `guidance_scale` None is the pipeline's own.
    """

    name: str
    folder: Path
    steps: int
    prompts: Path | None = None
    other_prompts: Path | None = None
    guidance_scale: float | None = None

    @property
    def judged(self) -> Task:
        """What images are judged for; no calibration was given these prompts."""
        if self.other_prompts is None:
            return Task(guidance_scale=self.guidance_scale)
        prompts = self.other_prompts.read_text(encoding="utf-8").strip().split("\n")
        return Task(prompts=tuple(prompts), guidance_scale=self.guidance_scale)

    @property
    def words(self) -> list[str]:
        """The words of `accuquant calibrate` that belong to this network."""
        prompts = [] if self.prompts is None else ["--prompts", str(self.prompts)]
        scale = self.guidance_scale
        guidance = [] if scale is None else ["--guidance-scale", str(scale)]
        return [str(self.folder), "--steps", str(self.steps), *prompts, *guidance]


NETWORKS = {
    network.name: network
    for network in (
        StudiedNetwork("fashion-ddpm", FASHION_DDPM, 50),
        StudiedNetwork(
            "fashion-text", FASHION_TEXT, 25, FASHION_TEXT / "prompts.txt", FASHION_TEXT / "other-prompts.txt"
        ),
        StudiedNetwork("emoji-dit", EMOJI_DIT, 25),
        StudiedNetwork("emoji-unet", EMOJI_UNET, 25),
    )
}


def find_network(text: str) -> StudiedNetwork:
    """Return a network by name, or the pipeline in a folder, sampled with 50 steps.

    Raises ValueError where `text` is neither.
    """
    if text in NETWORKS:
        return NETWORKS[text]
    folder = Path(text)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{text}: expected one of {', '.join(NETWORKS)}, or the folder of a pipeline")
    return StudiedNetwork(folder.resolve().name, folder, 50)
