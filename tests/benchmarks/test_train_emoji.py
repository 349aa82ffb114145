"""The scripts that made the bundled emoji pipelines."""

from __future__ import annotations

import torch
from train_emoji import DIT_CLASSES, NUM_LABELS, build_transformer, with_all_labels


def test_every_label_that_the_pipeline_may_pass_shows_a_class_and_1000_shows_none() -> None:
    torch.manual_seed(0)
    small = build_transformer(len(DIT_CLASSES)).eval()
    for parameter in small.parameters():  # adaLN-Zero starts with networks that ignore their class
        torch.nn.init.normal_(parameter, std=0.05)
    whole = with_all_labels(small)
    labels = torch.tensor([0, 1, 6, 999, NUM_LABELS])
    sample, timestep = torch.randn(1, 4, 16, 16).expand(5, -1, -1, -1), torch.full((5,), 500)
    with torch.no_grad():
        found = whole(sample, timestep=timestep, class_labels=labels).sample
        expected = small(
            sample, timestep=timestep, class_labels=torch.tensor([0, 1, 2, 3, len(DIT_CLASSES)])
        ).sample
    assert torch.equal(found, expected)
    assert len({tuple(image.flatten()[:3].tolist()) for image in found}) == 5
