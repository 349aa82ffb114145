"""Metrics of other libraries: their own code where it can be imported here, weights from local files."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipelines import clip as tiny_clip
from torch import Tensor, nn
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from accuquant.errors import MissingDependencyError, UsageError, VerificationError
from accuquant.evaluation.scores import load_clip, load_image_reward, load_lpips


def random_images(count: int, side: int = 64, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


def alexnet_features() -> nn.Sequential:
    """Return the convolutions of torchvision's AlexNet, with its names: 0, 3, 6, 8, 10."""
    convolutions = [
        (3, 64, 11, 4, 2),
        (64, 192, 5, 1, 2),
        (192, 384, 3, 1, 1),
        (384, 256, 3, 1, 1),
        (256, 256, 3, 1, 1),
    ]
    layers: list[nn.Module] = []
    for k, (inputs, outputs, kernel, stride, padding) in enumerate(convolutions):
        layers += [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2)] if k in (0, 1, 4) else []
    return nn.Sequential(*layers)


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put AlexNet's untrained layers where torchmetrics looks for torchvision."""
    module: Any = types.ModuleType("torchvision")
    module.models = types.ModuleType("torchvision.models")

    def alexnet(weights: object) -> Any:
        if weights is not None:
            raise OSError("no network")
        return types.SimpleNamespace(features=alexnet_features())

    module.models.alexnet = alexnet
    module.models.AlexNet_Weights = types.SimpleNamespace(DEFAULT="default")
    monkeypatch.setitem(sys.modules, "torchvision", module)
    monkeypatch.setattr(torchmetrics_lpips, "_TORCHVISION_AVAILABLE", True)


@pytest.fixture
def alexnet_file(tmp_path: Path) -> Path:
    """Return a file in torchvision's format, the classifier's weights included."""
    torch.manual_seed(0)
    state = {f"features.{name}": value for name, value in alexnet_features().state_dict().items()}
    torch.save({**state, "classifier.1.weight": torch.zeros(2, 2)}, tmp_path / "alexnet.pth")
    return tmp_path / "alexnet.pth"


def plain_lpips(first: Tensor, second: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Return LPIPS (Zhang et al., eq. 1) in plain torch, with torchmetrics' linear weights."""
    linear = torch.load(
        Path(torchmetrics_lpips.__file__).parent / "lpips_models" / "alex.pth", map_location="cpu"
    )
    network = alexnet_features()
    network.load_state_dict({k.removeprefix("features."): v for k, v in state.items() if "features" in k})
    shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1)
    x, y = (((2 * images - 1) - shift) / scale for images in (first, second))
    total, level = torch.zeros(len(x)), 0
    for layer in network:
        x, y = layer(x), layer(y)
        if isinstance(layer, nn.ReLU):
            u, v = (z / (z.square().sum(1, keepdim=True).sqrt() + 1e-8) for z in (x, y))
            weight = linear[f"lin{level}.model.1.weight"]
            total, level = total + ((u - v).square() * weight).sum(1).mean((1, 2)), level + 1
    return total


def test_lpips_is_that_of_its_paper_with_weights_of_a_file(torchvision: None, alexnet_file: Path) -> None:
    images = random_images(2)
    others = (images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))).clamp(
        0, 1
    )
    score = load_lpips({"lpips": alexnet_file})
    with torch.no_grad():
        wanted = plain_lpips(images, others, torch.load(alexnet_file, weights_only=True))
    torch.testing.assert_close(score(images, others).float(), wanted, rtol=1e-4, atol=1e-6)
    assert score(images, images).tolist() == [0.0, 0.0]


def test_gray_images_have_an_lpips_too(torchvision: None, alexnet_file: Path) -> None:
    gray = random_images(2, channels=1)
    score = load_lpips({"lpips": alexnet_file})
    assert torch.equal(
        score(gray, 1 - gray), score(gray.expand(-1, 3, -1, -1), 1 - gray.expand(-1, 3, -1, -1))
    )


def test_lpips_without_weights_says_what_to_download_and_where_to_put_it(torchvision: None) -> None:
    with pytest.raises(
        VerificationError, match=r"alexnet-owt-7be5be79.pth and give --weights lpips=PATH, or ACCUQUANT_LPIPS"
    ):
        load_lpips()


def test_lpips_without_torchvision_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchmetrics_lpips, "_TORCHVISION_AVAILABLE", False)
    with pytest.raises(MissingDependencyError, match=r"metric 'lpips'.*pip install torchmetrics torchvision"):
        load_lpips()


def test_weights_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCUQUANT_CLIP", str(tmp_path / "absent"))
    with pytest.raises(UsageError, match=r"weights of 'clip': got '.*absent', where nothing is"):
        load_clip()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny CLIP as save_pretrained writes it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    tokenizer, _ = tiny_clip(folder)
    common = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        "vocab_size": 54,
        "max_position_embeddings": 16,
        "bos_token_id": 52,
        "eos_token_id": 53,
        "pad_token_id": 53,
    }
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=common | text, vision_config=common | vision)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )
    return folder


def test_the_clip_score_is_the_cosine_of_image_and_prompt(clip_folder: Path) -> None:
    """The oracle embeds by hand: the picture is of CLIP's size, so that nothing is resized."""
    from transformers import CLIPModel, CLIPTokenizer

    images = (random_images(2, 32) * 255).round() / 255
    network, tokenizer = CLIPModel.from_pretrained(clip_folder), CLIPTokenizer.from_pretrained(clip_folder)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(1, 3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(1, 3, 1, 1)
    wanted = []
    for image, prompt in zip(images, ("a b", "c"), strict=True):
        with torch.no_grad():
            seen = network.vision_model((image[None] - mean) / deviation).pooler_output
            read = network.text_model(**tokenizer(prompt, return_tensors="pt")).pooler_output
            pair = network.visual_projection(seen)[0], network.text_projection(read)[0]
        wanted.append(100 * float(torch.cosine_similarity(*pair, dim=0)))
    assert load_clip({"clip": clip_folder})(images, ["a b", "c"]).tolist() == pytest.approx(wanted, rel=1e-4)


class Reward(nn.Module):
    """A small network behind ImageReward's interface: it scores one picture at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))

    def score(self, prompt: str, image: Image.Image) -> float:
        return float(self.gain) * len(prompt) + float(np.asarray(image).mean())


def test_image_reward_is_asked_picture_by_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = types.ModuleType("ImageReward")

    def load(
        name: str, device: str, download_root: str | None = None, med_config: str | None = None
    ) -> Reward:
        if not Path(name).is_file():
            raise RuntimeError(f"Model {name} not found")
        assert med_config is not None
        assert Path(med_config).read_text() == "{}"
        network = Reward()
        network.load_state_dict(torch.load(name, map_location=device, weights_only=True))
        return network

    library.load = load
    monkeypatch.setitem(sys.modules, "ImageReward", library)
    torch.save({"gain": torch.tensor(1000.0)}, tmp_path / "ImageReward.pt")
    (tmp_path / "med_config.json").write_text("{}")
    images = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 3, 4, 4)
    score = load_image_reward({"image-reward": tmp_path})
    assert score(images, ["ab", "abc"]).tolist() == [2000.0, 3255.0]
    with pytest.raises(
        VerificationError,
        match=r"Model ImageReward-v1.0 not found.*THUDM/ImageReward.*--weights image-reward=PATH",
    ):
        load_image_reward()


def test_image_reward_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ImageReward", None)
    with pytest.raises(MissingDependencyError, match=r"metric 'image-reward'.*pip install image-reward"):
        load_image_reward()
