"""What the layers saw in each batch of the recording, in files: read layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from accuquant._util.files import atomic_write
from accuquant.units.tensor_tree import storable

from .activations import ActivationSampler, LayerSamples, merged
from .input_moments import Moments, MomentSampler, moments_of
from .tensor_file import TensorFile

_ROWS_SIZE = "bytes of rows"


def rows_beside(path: Path) -> Path:
    """Return where the rows lie that the file at `path` counts."""
    return path.with_suffix(".rows")


def save_inputs(path: Path, activations: ActivationSampler, moments: MomentSampler) -> None:
    """Write what both samplers drew in one batch to `path`, atomically, once its rows are on disk."""
    tensors: dict[str, Tensor] = {**activations.drawn(), **moments.finish()}
    rows = rows_beside(path)
    size = rows.stat().st_size if rows.is_file() else 0
    with atomic_write(path) as temporary:
        save_file(
            {name: storable(tensor) for name, tensor in tensors.items()},
            temporary,
            metadata={_ROWS_SIZE: str(size)},
        )


def is_whole(path: Path) -> bool:
    """Say whether `save_inputs` has written `path`, and the rows beside it are all there."""
    file, rows = TensorFile(path), rows_beside(path)
    if not file.whole():
        return False
    size = rows.stat().st_size if rows.is_file() else 0
    return file.metadata().get(_ROWS_SIZE) == str(size)


class RecordedInputs:
    """The inputs of all batches: nothing is in memory but the layer that was asked for.

    Samples and sums are joined in the order of the batches, whatever order they were recorded in.
    """

    def __init__(
        self, files: Sequence[Path], layers: Mapping[str, nn.Module], rounded: Sequence[str]
    ) -> None:
        """Prepare to read the `files` of all batches; moments were gathered for the layers in `rounded`."""
        self._files = [TensorFile(path) for path in files]
        self._layers = layers
        self.rounded = tuple(rounded)

    def samples(self, name: str, groups: int) -> LayerSamples:
        """Return a layer's sample in each of the step groups."""
        return [merged([file[f"sample/{name}/{group}"] for file in self._files]) for group in range(groups)]

    def moments(self, name: str) -> Moments:
        """Return the moments of a layer's inputs."""
        return moments_of(name, self._layers[name], [(file, rows_beside(file.path)) for file in self._files])
