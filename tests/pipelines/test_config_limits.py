import json
import shutil
from pathlib import Path

import pytest

from accuquant.errors import SourceError
from accuquant.pipelines.config_limits import check_numbers
from accuquant.pipelines.source import load_source


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layers_per_block", 10**9),
        ("layers_per_block", [2, 10**9]),
        ("block_out_channels", [10**7]),
        ("num_layers", 10**400),
        ("sample_size", -(2**40)),
        ("down_block_types", ["DownBlock2D"] * 5000),
    ],
)
def test_numbers_that_no_network_has_are_refused(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({key: value}))
    with pytest.raises(SourceError, match=f"'{key}.*expected at most"):
        check_numbers(path)


def test_a_pipeline_is_refused_before_its_network_is_built(tmp_path: Path, tiny_pipeline: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny_pipeline, folder)
    for part, key in (
        ("unet/config.json", "layers_per_block"),
        ("scheduler/scheduler_config.json", "num_train_timesteps"),
    ):
        config = json.loads((folder / part).read_text())
        (folder / part).write_text(json.dumps({**config, key: 10**9}))
        with pytest.raises(SourceError, match=f"'{key}'"):
            load_source(folder)
        (folder / part).write_text(json.dumps(config))
    load_source(folder)


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "\x00", '{"a": "\\ud800"}'])
def test_what_is_no_json_is_left_to_diffusers(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    check_numbers(tmp_path / "config.json")
    check_numbers(tmp_path / "missing.json")
