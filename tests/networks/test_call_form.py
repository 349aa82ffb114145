"""How a network is called that nobody entered: places of tensors in nested arguments, there and back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from accuquant._util.facts import FactsError
from accuquant.errors import SourceError, UsageError
from accuquant.networks.call_form import CallForm, Place, leaves, nested
from accuquant.networks.call_tensors import tensors_of_call, undressed
from accuquant.networks.network import call, remember_call, signature_of
from accuquant.networks.signature import Signature, TensorSpec, Uncaptured

FORM = CallForm(
    tensors={
        "x": Place(("x",), rows=True, unit_axis=2),
        "timestep": Place(("moment",)),
        "words": Place(("told", "words")),
        "pair_1": Place(("pair", 1)),
    },
    output=Place((0,), rows=True, unit_axis=2),
    constants={("gain",): 0.5, ("told", "kind"): "plain", ("pair", 0): None, ("extra",): {}},
    counts_from=1000.0,
)
SIGNATURE = Signature(
    "Nested",
    TensorSpec("x", ("batch", 3, "height", "width")),
    TensorSpec("timestep", ("steps",)),
    (TensorSpec("words", ("batch", "tokens", 4)), TensorSpec("pair_1", ("height",))),
    TensorSpec("out_x", ("batch", 3, "height", "width")),
    {"batch": 1, "steps": 1, "height": 2, "width": 2, "tokens": 5},
    call=FORM,
)


class Nested(nn.Module):
    """Takes what FORM says, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(
        self, x: list[Tensor], moment: Tensor, told: dict[str, Any], pair: list[Any], gain: float, extra: Any
    ) -> tuple[list[Tensor]]:
        assert (gain, told["kind"], pair[0], extra) == (0.5, "plain", None, {})
        words = told["words"].mean((1, 2))
        rows = zip(x, moment, words, strict=True)
        return ([self.factor * row * m + w + pair[1][:, None] for row, m, w in rows],)


def test_a_network_is_called_as_it_was_seen() -> None:
    network = Nested()
    remember_call(network, SIGNATURE)
    x, words, pair = torch.randn(2, 3, 2, 2), torch.randn(2, 5, 4), torch.randn(2)
    output = call(network, x, torch.tensor(250.0), {"words": words, "pair_1": pair})
    expected = 2 * x * 0.75 + words.mean((1, 2)).reshape(2, 1, 1, 1) + pair[:, None]
    torch.testing.assert_close(output, expected)
    assert signature_of(network) is SIGNATURE


def test_the_tensors_of_a_call_are_found_again() -> None:
    tensors = {"x": torch.randn(2, 3, 2, 2), "timestep": torch.tensor([0.75, 0.75]),
               "words": torch.randn(2, 5, 4), "pair_1": torch.randn(2)}  # fmt: skip
    found = tensors_of_call(FORM, FORM.assemble(tensors))
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    returned = FORM.returned(tensors["x"])
    assert [tuple(row.shape) for row in returned[0]] == [(3, 1, 2, 2)] * 2  # unit axis 2 of the batch
    assert torch.equal(undressed(returned[0], FORM.output), tensors["x"])
    assert FORM.graph_timestep(FORM.network_timestep(250.0)) == 250.0


def test_another_constant_or_tensor_than_was_seen_is_refused() -> None:
    arguments = FORM.assemble({"x": torch.randn(2, 3, 2, 2), "timestep": torch.ones(2),
                               "words": torch.randn(2, 5, 4), "pair_1": torch.randn(2)})  # fmt: skip
    with pytest.raises(UsageError, match=r"argument 'gain' of the network: got another value"):
        tensors_of_call(FORM, arguments | {"gain": 0.7})
    with pytest.raises(UsageError, match=r"argument 'control' of the network: got another value"):
        tensors_of_call(FORM, arguments | {"control": torch.ones(1)})
    with pytest.raises(UsageError, match=r"argument 'x' of the network: got rows of several lengths"):
        tensors_of_call(FORM, arguments | {"x": [torch.ones(3, 1, 2, 2), torch.ones(3, 1, 3, 2)]})
    assert set(tensors_of_call(FORM, arguments | {"extra": None})) == set(FORM.tensors)


def test_the_form_survives_a_file() -> None:
    again = Signature.from_dict(json.loads(json.dumps(SIGNATURE.to_dict())))
    assert again == SIGNATURE
    assert (
        "call" not in replace(SIGNATURE, call=None).to_dict()
    )  # files of classes with an entry stay as they were


def test_a_form_of_another_version_or_for_other_inputs_is_refused() -> None:
    data = SIGNATURE.to_dict()
    with pytest.raises(FactsError, match="a call of version 2, not 1"):
        Signature.from_dict(data | {"call": data["call"] | {"version": 2}})
    with pytest.raises(FactsError, match=r"a call with .* for the inputs timestep, x"):
        Signature.from_dict(data | {"inputs": data["inputs"][:2]})


def test_nesting_undoes_leaves() -> None:
    value = {"a": [1, {"b": 2.5, "c": None}], "d": {}, "e": "text", "f": [[(3, 4)]]}
    assert nested(dict(leaves(value))) == {**value, "f": [[[3, 4]]]}


def test_a_class_that_nobody_entered_says_how_it_becomes_known() -> None:
    signature = signature_of(Nested())
    assert isinstance(signature, Uncaptured)
    assert signature.architecture == "Nested"
    with pytest.raises(
        SourceError, match=r"network Nested: got a class without an entry.*accuquant calibrate"
    ):
        _ = signature.sample
