"""The call signature of a network."""

from __future__ import annotations

import json

import pytest

from accuquant.errors import UsageError
from accuquant.networks.signature import Signature, TensorSpec

SDXL = Signature(
    architecture="UNet2DConditionModel",
    sample=TensorSpec("sample", ("batch", 4, "height", "width")),
    timestep=TensorSpec("timestep", ("steps",), "int64"),
    conditioning=(
        TensorSpec("encoder_hidden_states", ("batch", "tokens", 2048)),
        TensorSpec("text_embeds", ("batch", 1280)),
        TensorSpec("time_ids", ("batch", 6)),
    ),
    output=TensorSpec("out_sample", ("batch", 4, "height", "width")),
    sizes={"batch": 1, "steps": 1, "height": 128, "width": 128, "tokens": 77},
)


def test_survives_json() -> None:
    assert Signature.from_dict(json.loads(json.dumps(SDXL.to_dict()))) == SDXL


def test_inputs_are_in_graph_order() -> None:
    names = [spec.name for spec in SDXL.inputs]
    assert names == ["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"]


def test_named_extents_are_looked_up() -> None:
    assert SDXL.sample.resolve({"batch": 2, "height": 64, "width": 96}) == (2, 4, 64, 96)


def test_names_the_extents_that_have_no_size() -> None:
    with pytest.raises(UsageError, match=r"input 'sample': .* expected a size for height, width"):
        SDXL.sample.resolve({"batch": 2})


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": None},
        {"inputs": [{}]},
        {"inputs": []},
        {"sizes": [1]},
        {"sizes": {"a": "b"}},
        {"output": 3},
    ],
)
def test_other_data_raises_one_of_three_kinds(changes: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Signature.from_dict(SDXL.to_dict() | changes)
