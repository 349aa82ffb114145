"""Which inputs grow with the batch is read in the signature, never guessed from equal numbers."""

from __future__ import annotations

import numpy as np

from accuquant.networks.signature import Signature, TensorSpec
from accuquant.runtime.static_batch import batched_names, fixed_batch, missing_rows, pad_rows

IMAGE = TensorSpec("sample", ("batch", 4, "height", "width"))
SIGNATURE = Signature(
    architecture="UNet2DConditionModel",
    sample=IMAGE,
    timestep=TensorSpec("timestep", ("steps",)),
    conditioning=(TensorSpec("encoder_hidden_states", ("batch", "tokens", 8)), TensorSpec("guidance", (1,))),
    output=TensorSpec("out_sample", IMAGE.shape),
    sizes={"batch": 1},
)
FOUR = (TensorSpec("timestep", (4,)), TensorSpec("sample", (4, 4, 8, 8)))
ANY = (TensorSpec("sample", ("?", 4, 8, 8)),)


def test_the_engine_says_its_batch_in_the_shape_of_the_sample() -> None:
    assert fixed_batch(SIGNATURE, FOUR) == 4
    assert fixed_batch(SIGNATURE, ANY) is None
    assert batched_names(SIGNATURE) == {"sample", "encoder_hidden_states"}


def test_only_a_smaller_batch_lacks_rows() -> None:
    assert [missing_rows(SIGNATURE, FOUR, (rows, 4, 8, 8)) for rows in range(6)] == [0, 3, 2, 1, 0, 0]
    assert missing_rows(SIGNATURE, FOUR, ()) == 0
    assert missing_rows(SIGNATURE, ANY, (1, 4, 8, 8)) == 0


def test_the_last_row_is_repeated_and_other_inputs_stay() -> None:
    sample = np.arange(6.0).reshape(2, 3)
    feeds = {"sample": sample, "timestep": np.ones(2)}
    padded = pad_rows(feeds, batched_names(SIGNATURE), 2)
    np.testing.assert_array_equal(padded["sample"], sample[[0, 1, 1, 1]])
    assert padded["timestep"] is feeds["timestep"]
    assert len(feeds["sample"]) == 2, "what the caller gave stays as it is"
