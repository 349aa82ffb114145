"""Fine-tunes and merges: a network in place of the pipeline's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from single_files import ldm_unet
from tiny_pipelines import text_unet
from torch import nn

from accuquant.cli.main import main
from accuquant.errors import SourceError
from accuquant.manifest import Manifest
from accuquant.networks.network import model_hash
from accuquant.networks.stored_weights import named_weights
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.source_job import source_job
from accuquant.pipelines.task import Task
from accuquant.recipe import Recipe
from accuquant.units.job import opened
from accuquant.units.travelling import Unpacker, pack

FILE = "diffusion_pytorch_model.safetensors"
MERGED: Any = text_unet(7)


@pytest.fixture(scope="module")
def pipeline(tiny_text_pipeline: Callable[[str], Path]) -> Path:
    return tiny_text_pipeline("sd")


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of another network of the same architecture."""
    folder = tmp_path_factory.mktemp("merged")
    MERGED.save_pretrained(folder)
    return folder


def in_a_folder(merged: Path, _pipeline: Path, _scratch: Path) -> Path:
    return merged


def in_shards(_merged: Path, _pipeline: Path, scratch: Path) -> Path:
    MERGED.save_pretrained(scratch, max_shard_size="20KB")
    assert len(list(scratch.glob("*.safetensors"))) > 2
    return scratch


def in_a_pipeline(_merged: Path, pipeline: Path, scratch: Path) -> Path:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(pipeline, unet=MERGED, safety_checker=None)
    pipe.save_pretrained(scratch)
    return scratch


def in_a_file(merged: Path, _pipeline: Path, _scratch: Path) -> Path:
    return merged / FILE


def in_a_file_of_the_original_code(merged: Path, _pipeline: Path, scratch: Path) -> Path:
    save_file(ldm_unet(load_file(merged / FILE)), scratch / "merge.safetensors")
    return scratch / "merge.safetensors"


@pytest.mark.parametrize(
    "where", [in_a_folder, in_shards, in_a_pipeline, in_a_file, in_a_file_of_the_original_code]
)
def test_a_network_comes_from(where: Any, merged: Path, pipeline: Path, tmp_path: Path) -> None:
    place = where(merged, pipeline, tmp_path)
    source = load_source(pipeline, network=str(place))
    assert source.model_hash == model_hash(MERGED) != load_source(pipeline).model_hash
    assert not source.network.training
    assert open_pipeline(source, Task(prompts=("a",))).unet is source.network


def test_a_network_in_half_precision_is_held_so(pipeline: Path, tmp_path: Path) -> None:
    network: Any = text_unet(7)
    network.half().save_pretrained(tmp_path, variant="fp16")
    with pytest.raises(SourceError, match=r"Give --variant fp16"):
        load_source(pipeline, network=str(tmp_path))
    source = load_source(pipeline, network=str(tmp_path), variant="fp16", as_stored=True)
    assert types_of(source) == {torch.float16, torch.float32}
    wide = load_source(pipeline, network=str(next(tmp_path.glob("*.safetensors"))))
    assert types_of(wide) == {torch.float32}
    assert wide.model_hash == source.model_hash
    opener: Any = source_job(source).open
    assert opener.as_stored  # workers hold it as it is held here


def types_of(source: Source) -> set[torch.dtype]:
    """Return the types that weights are held in; those of linear layers and convolutions stay half."""
    return {tensor.dtype for tensor in named_weights(source.network).values()}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"cross_attention_dim": 32}, r"cross_attention_dim 32 instead of 16"),
        ({"block_out_channels": (16,)}, r"block_out_channels \[16\] instead of \[8\]"),
    ],
)
def test_another_architecture_is_refused_by_name(
    pipeline: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    text_unet(0, **change).save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(SourceError, match=rf"--network '.*': got another architecture: .*{named}"):
        load_source(pipeline, network=str(tmp_path))


def test_another_class_is_refused_by_name(
    make_unet: Callable[..., nn.Module], pipeline: Path, tmp_path: Path
) -> None:
    network: Any = make_unet()
    network.save_pretrained(tmp_path)
    with pytest.raises(SourceError, match=r"_class_name 'UNet2DModel' instead of 'UNet2DConditionModel'"):
        load_source(pipeline, network=str(tmp_path))


@pytest.mark.parametrize("original", [False, True])
def test_a_file_of_other_shapes_is_refused_by_name(pipeline: Path, tmp_path: Path, original: bool) -> None:
    weights = text_unet(0, cross_attention_dim=32).state_dict()
    save_file(ldm_unet(weights) if original else weights, tmp_path / "m.safetensors")
    with pytest.raises(SourceError, match=r"'.*m\.safetensors': got .*attn2\.to_k\.weight.*(32|16)"):
        load_source(pipeline, network=str(tmp_path / "m.safetensors"))


@pytest.mark.parametrize(
    ("original", "named"),
    [(False, r"resnets\.1\.conv2\.weight"), (True, "no weights for some of the layers")],
)
def test_a_file_that_lacks_weights_is_refused(
    pipeline: Path, tmp_path: Path, original: bool, named: str
) -> None:
    weights = {k: v for k, v in MERGED.state_dict().items() if k != "mid_block.resnets.1.conv2.weight"}
    save_file(ldm_unet(weights) if original else weights, tmp_path / "m.safetensors")
    with pytest.raises(SourceError, match=rf"'.*m\.safetensors': got .*{named}"):
        load_source(pipeline, network=str(tmp_path / "m.safetensors"))


def test_a_network_that_is_not_there_is_named(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"--network '.*nowhere': got no such file or folder"):
        load_source(pipeline, network=str(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match=r"--network '.*': got no config\.json in"):
        load_source(pipeline, network=str(tmp_path))


def test_a_worker_takes_the_same_network(pipeline: Path, merged: Path) -> None:
    job = source_job(load_source(pipeline, network=str(merged)))
    there: Any = Unpacker({}).unpack(pack(job, {}).data, lambda _token: b"")
    with opened(there, "node", "cpu") as roots:
        assert model_hash(roots["network"]) == model_hash(MERGED)


def test_weights_in_shards_are_those_in_one_file(tiny_pipeline: Path, tmp_path: Path) -> None:
    pipe = diffusers.DDIMPipeline.from_pretrained(tiny_pipeline)
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    pipe.to(torch.float16).save_pretrained(tmp_path / "halves", max_shard_size="10KB", variant="fp16")
    for name in ("shards", "halves"):
        assert len(list((tmp_path / name / "unet").glob("*.safetensors"))) > 2
    assert load_source(tmp_path / "shards").model_hash == load_source(tiny_pipeline).model_hash
    source = load_source(tmp_path / "halves", variant="fp16", as_stored=True)
    assert torch.float16 in types_of(source)


@pytest.mark.slow
def test_the_commands_agree_on_the_network(
    tiny_pipeline: Path,
    make_unet: Callable[..., nn.Module],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tuned: Any = make_unet(5)
    tuned.save_pretrained(tmp_path / "tuned")
    source, recipe, out = str(tiny_pipeline), tmp_path / "r.safetensors", tmp_path / "out"
    quick = ["--steps", "4", "--num-trajectories", "2", "--no-refine", "--observer", "minmax", "--quiet"]
    quick += ["--weight-bits", "7", "--rounding", "nearest"]
    given = ["--network", str(tmp_path / "tuned")]
    assert main(["calibrate", source, "-o", str(recipe), *given, *quick]) == 0
    found = Recipe.load(recipe)
    assert found.facts.loading.network == str(tmp_path / "tuned")
    assert found.model_hash == model_hash(tuned)
    # the recipe says which network it was
    assert (
        main(["export", source, "--recipe", str(recipe), "-o", str(out), "--target", "cpu", "--quiet"]) == 0
    )
    assert Manifest.load(out).model_hash == found.model_hash
    verify = ["verify", str(out), "--reference", source, "--num-images", "2", "--features", "none"]
    verify += ["--engine", "onnxruntime", "--min-psnr", "20", "--quiet"]
    assert main([*verify, "--json", str(tmp_path / "v.json")]) == 0
    assert json.loads((tmp_path / "v.json").read_text())["passed"]
    capsys.readouterr()
    other = ["--network", str(tiny_pipeline)]  # the pipeline's own
    assert main([*verify, *other]) == 1
    assert "got weights other than those that were exported" in capsys.readouterr().err
