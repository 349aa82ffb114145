"""Inception by its libraries: stand-ins with their interfaces, and the libraries where they are installed."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from accuquant.errors import MissingDependencyError, VerificationError
from accuquant.evaluation.bootstrap import block_edges
from accuquant.evaluation.inception_score import BlockScores
from accuquant.verification.measure.feature_networks import (
    FEATURES,
    LOGITS,
    SPATIAL,
    Inception,
    load_clean_fid,
    load_inception,
)
from accuquant.verification.measure.features import extract_all, load_features
from accuquant.verification.measure.frechet import Moments

HOME = "torch_fidelity.feature_extractor_inceptionv3"
ALL = (FEATURES, SPATIAL, LOGITS)


class TinyInception(nn.Module):
    """torch-fidelity's interface around a block of the same name: 8 channels, 5 classes."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None
    ) -> None:
        super().__init__()
        assert tuple(features_list) == Inception.requested
        self.Mixed_6d = nn.ModuleDict({"branch1x1": nn.Conv2d(3, 8, 1)})
        self.fc = nn.Linear(8, 5)
        if feature_extractor_weights_path is None:
            raise OSError("no network")
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert images.dtype == torch.uint8
        maps = self.Mixed_6d["branch1x1"](images.float())
        pooled = maps.mean((2, 3))
        return pooled, pooled @ self.fc.weight.T


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put TinyInception in torch-fidelity's place; return a file of its weights."""
    module: Any = types.ModuleType(HOME)
    module.FeatureExtractorInceptionV3 = TinyInception
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, HOME, module)
    torch.manual_seed(0)
    state = {
        "Mixed_6d.branch1x1.weight": torch.randn(8, 3, 1, 1), "Mixed_6d.branch1x1.bias": torch.randn(8),
        "fc.weight": torch.randn(5, 8), "fc.bias": torch.randn(5),
    }  # fmt: skip
    torch.save(state, tmp_path / "inception.pth")
    return tmp_path / "inception.pth"


def test_inception_gives_features_a_map_and_logits_without_bias(weights: Path) -> None:
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    found = extract_all(load_inception({"inception": weights}), images, ALL)
    state = torch.load(weights, weights_only=True)
    pixels = (images * 255).round()
    maps = torch.einsum("oi,nihw->nohw", state["Mixed_6d.branch1x1.weight"][:, :, 0, 0], pixels)
    maps = maps + state["Mixed_6d.branch1x1.bias"].reshape(1, -1, 1, 1)
    torch.testing.assert_close(found[SPATIAL], maps[:, :7].flatten(1))
    torch.testing.assert_close(found[FEATURES], maps.mean((2, 3)))
    torch.testing.assert_close(found[LOGITS], maps.mean((2, 3)) @ state["fc.weight"].T)


def test_weights_may_be_named_in_the_environment(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCUQUANT_INCEPTION", str(weights))
    network = load_features("inception", (1, 4, 4))
    assert network is not None
    assert network(torch.rand(2, 1, 4, 4)).shape == (2, 8)


def test_inception_without_weights_says_what_to_download_and_where_to_put_it(weights: Path) -> None:
    with pytest.raises(
        VerificationError,
        match=r"6726825d.pth and give --weights inception=PATH, or ACCUQUANT_INCEPTION",
    ):
        load_inception()


@pytest.fixture
def clean_fid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put modules with clean-fid's functions in its place; the network is a TorchScript file, as there."""
    networks: Any = types.ModuleType("cleanfid.inception_torchscript")
    resizing: Any = types.ModuleType("cleanfid.resize")

    def load(path: str, download: bool = True, resize_inside: bool = False) -> Any:
        if download:
            raise OSError("no network")
        return torch.jit.load(str(Path(path) / "inception-2015-12-05.pt"))

    networks.InceptionV3W = load
    resizing.build_resizer = lambda mode: {"clean": lambda image: image[::2, ::2].astype(np.float32)}[mode]
    for name, module in (
        ("cleanfid", types.ModuleType("cleanfid")),
        (networks.__name__, networks),
        (resizing.__name__, resizing),
    ):
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_clean_fid_resizes_before_its_network(clean_fid: None, tmp_path: Path) -> None:
    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3))

    torch.jit.save(torch.jit.script(Mean()), str(tmp_path / "inception-2015-12-05.pt"))
    images = torch.rand(2, 3, 4, 4)
    wanted = (images * 255).round()[:, :, ::2, ::2].mean((2, 3))
    for named in (tmp_path, tmp_path / "inception-2015-12-05.pt"):
        torch.testing.assert_close(load_clean_fid({"clean-fid": named})(images), wanted)


def test_clean_fid_without_weights_says_what_to_download(
    clean_fid: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(VerificationError, match=r"inception-2015-12-05.pt and give --weights clean-fid=PATH"):
        load_clean_fid()


def test_clean_fid_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanfid", None)
    with pytest.raises(MissingDependencyError, match=r"pip install clean-fid"):
        load_clean_fid()


#: Where torch-fidelity has the weights of the network that papers report FID of; AccuQuant ships none.
PUBLISHED = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"


def inception_file(weights: str, folder: Path, module: Any) -> Path:
    """Return a file of random weights in torch-fidelity's format, or the published one."""
    if weights == "published":
        named = os.environ.get("ACCUQUANT_INCEPTION")
        if not named:
            pytest.skip(f"download {PUBLISHED}, and name the file in ACCUQUANT_INCEPTION")
        return Path(named)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *_: None)
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), folder / "inception.pth")
    return folder / "inception.pth"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", ["random", "published"])
def test_fid_sfid_and_is_agree_with_torch_fidelity(weights: str, tmp_path: Path) -> None:
    """Its network, its statistics and its scores on the same images; needs torchvision too."""
    module = pytest.importorskip(HOME)
    fid, isc = (
        pytest.importorskip("torch_fidelity.metric_fid"),
        pytest.importorskip("torch_fidelity.metric_isc"),
    )
    path = inception_file(weights, tmp_path, module)
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(20, 3, 32, 32, generator=generator)
    fake = (0.7 * real + 0.3 * torch.rand(20, 3, 32, 32, generator=generator)) ** 2
    ours = [extract_all(load_inception({"inception": path}), images, ALL) for images in (real, fake)]
    theirs = module.FeatureExtractorInceptionV3(
        "x", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
    )
    pixels = (fake * 255).round().to(torch.uint8)
    features, logits = theirs.eval()(pixels)
    torch.testing.assert_close(ours[1][FEATURES], features)
    torch.testing.assert_close(ours[1][LOGITS], logits)
    assert [ours[1][name].shape[1] for name in ALL] == [2048, 7 * 17 * 17, 1008]
    for output in (FEATURES, SPATIAL):
        statistics = [fid.fid_features_to_statistics(part[output].double()) for part in ours]
        wanted = fid.fid_statistics_to_metric(*statistics, verbose=False)[fid.KEY_METRIC_FID]
        measured = [Moments.of(part[output].numpy()).gaussian for part in ours]
        assert measured[0].distance(measured[1]) == pytest.approx(wanted, rel=1e-4)
    score = isc.isc_features_to_metric(logits, splits=10, shuffle=False)[isc.KEY_METRIC_ISC_MEAN]
    scores = BlockScores(block_edges(20))
    scores.add(ours[1][LOGITS])
    assert scores.score(np.ones(20, np.int64)) == pytest.approx(score, rel=1e-5)
