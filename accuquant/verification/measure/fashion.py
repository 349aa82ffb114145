"""The feature network that ships with AccuQuant: a small classifier of 32x32 grayscale clothing."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

WEIGHTS = Path(__file__).parents[2] / "data" / "fashion-features" / "model.safetensors"
NUM_FEATURES = 64
NUM_CLASSES = 10


class FashionClassifier(nn.Module):
    """Images [N, 1, 32, 32] in [0, 1] -> logits [N, 10].

    `features` gives the 64 values before the last layer. SiLU instead of ReLU keeps them smooth, so that
    a small change of the image is a small change of the features.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            OrderedDict(
                stem=_block(1, 24, kernel=5, stride=2),
                stage1=_block(24, 48, kernel=3, stride=2),
                stage2=_block(48, 64, kernel=3, stride=1),
                stage3=_block(64, 96, kernel=3, stride=2),
                project=_block(96, NUM_FEATURES, kernel=1, stride=1),
            )
        )
        self.head = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """Return the spatial mean of the last feature map: [N, 1, 32, 32] -> [N, 64]."""
        maps: Tensor = self.trunk(images * 2 - 1)
        return maps.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return the class logits [N, 10]."""
        logits: Tensor = self.head(self.features(images))
        return logits


def load_fashion_classifier(weights: Path = WEIGHTS) -> FashionClassifier:
    """Load the trained weights (float16 on disk, float32 in memory), in eval mode."""
    from safetensors.torch import load_file

    network = FashionClassifier()
    network.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in load_file(weights).items()}
    )
    return network.eval().requires_grad_(False)


def _block(inputs: int, outputs: int, *, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


@torch.no_grad()
def accuracy(network: FashionClassifier, images: Tensor, labels: Tensor) -> float:
    """Return the share of images [N, 1, 32, 32] whose largest logit is their label [N]."""
    hits = [
        (network(batch).argmax(1) == truth).sum()
        for batch, truth in zip(torch.split(images, 500), torch.split(labels, 500), strict=True)
    ]
    return float(torch.stack(hits).sum()) / len(labels)
