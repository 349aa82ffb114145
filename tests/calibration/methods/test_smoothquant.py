"""SmoothQuant's factors fold into norms and weights: the network stays the same, its ranges do not."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_networks import make_inputs, make_network
from torch import nn

from accuquant._util.progress import Silent
from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.calibration.methods.folding_places import folding_places
from accuquant.calibration.methods.smoothquant import factors
from accuquant.channel_fold import ChannelFold
from accuquant.errors import CalibrationError, ExportError, RecipeError, UsageError
from accuquant.networks.fold import fold_network
from accuquant.networks.network import call_directly, signature_of
from accuquant.networks.simulate import simulate
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe

ATTENTION = "down_blocks.0.attentions.0"
#: How many places each tiny network has: with adaptive norms, values and gates alone.
PLACES = {"ddpm": 2, "stable-diffusion-1": 24, "dit": 1, "pixart-alpha": 2, "flux": 0}


def random_folds(network: nn.Module) -> list[ChannelFold]:
    rng, modules = np.random.default_rng(0), dict(network.named_modules())
    return [
        ChannelFold(
            place.producer,
            place.consumers,
            rng.uniform(0.2, 5, modules[place.consumers[0]].in_features).astype(np.float32),
        )
        for place in folding_places(network)
    ]


@pytest.mark.parametrize("name", PLACES)
def test_a_folded_network_computes_the_same(name: str) -> None:
    network = make_network(name)
    folds = random_folds(network)
    before = copy.deepcopy(network.state_dict())
    folded = fold_network(network, folds)
    sample, conditioning = make_inputs(signature_of(network))
    with torch.no_grad():
        wanted = call_directly(network, sample, torch.tensor([500.0]), conditioning)
        found = call_directly(folded, sample, torch.tensor([500.0]), conditioning)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert len(folds) == PLACES[name]
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    differing = [k for k, v in folded.state_dict().items() if not torch.equal(v, before[k])]
    assert bool(differing) == bool(folds)


def test_factors_are_those_of_the_paper() -> None:
    peaks = np.array([4.0, 1.0, 0.0, 9.0], np.float32)
    weight = np.array([[1.0, -4.0, 2.0, 0.0], [0.5, 1.0, 1.0, 0.0]], np.float32)
    np.testing.assert_allclose(factors(peaks, [weight]), [2.0, 0.5, 1.0, 1.0])


@pytest.fixture(scope="module")
def spiked(tiny_source: Source) -> Source:
    """The tiny pipeline with one channel of the attention's norm 30 times as large, undone in its readers."""
    network = copy.deepcopy(tiny_source.network)
    modules = dict(network.named_modules())
    with torch.no_grad():
        modules[f"{ATTENTION}.group_norm"].get_parameter("weight")[3] *= 30
        modules[f"{ATTENTION}.group_norm"].get_parameter("bias")[3] *= 30
        for name in ("to_q", "to_k", "to_v"):
            modules[f"{ATTENTION}.{name}"].get_parameter("weight")[:, 3] /= 30
    return replace(tiny_source, network=network)


def settings_of(method: str, **changes: Any) -> CalibrationSettings:
    return CalibrationSettings.preset(
        "balanced", method=method, steps=2, num_trajectories=2, batch_size=2, **changes
    )


@pytest.fixture(scope="module")
def recipe(spiked: Source, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("smooth") / "recipe.safetensors"
    calibrate(spiked, settings_of("smoothquant"), output=path)
    return Recipe.load(path)


def test_the_spike_moves_into_the_weights(recipe: Recipe, spiked: Source, tmp_path: Path) -> None:
    plain = calibrate(spiked, settings_of("minmax"), output=tmp_path / "plain.safetensors")
    name = f"{ATTENTION}.to_q"
    assert recipe.layers[name].activation_scale[0] < 0.3 * plain.layers[name].activation_scale[0]
    fold = next(fold for fold in recipe.folds if fold.producer == f"{ATTENTION}.group_norm")
    assert int(np.argmax(fold.factors)) == 3

    def error(found: Recipe) -> float:
        rng = torch.Generator().manual_seed(0)
        x, t = torch.randn(8, 1, 8, 8, generator=rng), torch.tensor(500)
        seen: list[torch.Tensor] = []
        with torch.no_grad():
            for network in (spiked.network, simulate(spiked.network, found)):
                part = network.get_submodule(ATTENTION)
                hook = part.register_forward_hook(lambda _m, args, out: seen.append(out - args[0]))
                network(x, t)
                hook.remove()
        return float((seen[0] - seen[1]).square().mean())

    assert error(recipe) < 0.5 * error(plain)


def test_the_recipe_describes_the_folded_network(recipe: Recipe, spiked: Source, tmp_path: Path) -> None:
    recipe.save(tmp_path / "again.safetensors")
    assert Recipe.load(tmp_path / "again.safetensors").sha256() == recipe.sha256()
    with pytest.raises(RecipeError, match=r"expected the weight .* that was calibrated"):
        simulate(spiked.network, replace(recipe, folds=()))


class Stages(Silent):
    """Remembers which stages began."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def stage(self, name: str, total: int) -> None:
        self.names.append(name)


def test_where_nothing_folds_is_an_error_before_anything_runs(spiked: Source, tmp_path: Path) -> None:
    settings = settings_of("smoothquant", exclude=("*to_*",))
    stages = Stages()
    with pytest.raises(CalibrationError, match=r"--method smoothquant: got no normalization or linear layer"):
        calibrate(spiked, settings, output=tmp_path / "recipe.safetensors", progress=stages)
    assert not (tmp_path / "recipe.safetensors").exists()
    assert stages.names == []


def test_bits_that_the_method_does_not_define_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--weight-bits: got 4, which --method smoothquant does not define"):
        settings_of("smoothquant", weight_bits=4)


def test_a_fold_that_does_not_fit_the_network_is_refused() -> None:
    network = make_network("ddpm")
    wrong = ChannelFold("conv_in", ("conv_out",), np.ones(3, np.float32))
    with pytest.raises(RecipeError, match=r"fold, 'conv_in': got Conv2d, expected a linear layer"):
        fold_network(network, [wrong])
    short = ChannelFold(f"{ATTENTION}.to_v", (f"{ATTENTION}.to_out.0",), np.ones(3, np.float32))
    with pytest.raises(RecipeError, match=r"to_out.0': got 8 channels, expected 3"):
        fold_network(network, [short])
    with pytest.raises(RecipeError, match=r"a factor that is not above 0"):
        ChannelFold("a", ("b",), np.zeros(2, np.float32))


def test_an_onnx_file_cannot_take_folds(recipe: Recipe, tmp_path: Path) -> None:
    from accuquant.export import write_onnx

    with pytest.raises(ExportError, match=r"a recipe whose method scales channels of the network"):
        write_onnx(tmp_path / "absent.onnx", recipe, tmp_path / "out.onnx")


@pytest.mark.slow
def test_the_export_is_the_folded_network(recipe: Recipe, spiked: Source, tmp_path: Path) -> None:
    from accuquant.export import write_pipeline
    from accuquant.verification.verify import verify

    write_pipeline(spiked, recipe, tmp_path / "out")
    report = verify(tmp_path / "out", spiked, engine="onnxruntime", num_images=2, features="none")
    figures = report.to_dict()
    assert figures["lowering"]["summary"]["psnr"]["minimum"] > 40
