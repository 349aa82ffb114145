"""The interface that every inference engine implements."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from accuquant.errors import AccuQuantError, EngineError, last_line
from accuquant.networks.signature import TensorSpec
from accuquant.runtime.int8_use import Int8Use

Array = npt.NDArray[Any]
#: The extent of a dimension that an engine leaves to the caller and has no name for.
ANY_EXTENT = "?"


@dataclass(frozen=True)
class ModelSpecs:
    """The inputs and outputs of a loaded model, in graph order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Runner(ABC):
    """One model loaded into one engine: numpy arrays in, numpy arrays out.

    A backend implements `activate_impl`, `infer_impl` and `deactivate_impl`; this class checks state
    and inputs around them and turns whatever an engine raises into EngineError. A runner is used by
    one thread at a time. Use it as a context manager, or call `activate` and `deactivate`:

        with OpenVinoRunner("unet/model.onnx") as runner:
            prediction = runner.infer({"sample": x, "timestep": t})["out_sample"]
    """

    #: What users call the engine, in messages and on the command line.
    engine = "engine"

    def __init__(self, path: str | os.PathLike[str], *, name: str | None = None) -> None:
        self.path = Path(path)
        self.name = name or f"{self.engine} '{self.path.name}'"
        self._specs: ModelSpecs | None = None
        self._expected: tuple[tuple[str, np.dtype[Any], tuple[int | None, ...], TensorSpec], ...] = ()

    @property
    def is_active(self) -> bool:
        """Whether the model is loaded."""
        return self._specs is not None

    @property
    def int8_use(self) -> Int8Use | None:
        """What became of the calibrated layers in the loaded model; None where the engine does not say."""
        return None

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        """The inputs, in graph order; an extent that is a string is the caller's choice."""
        return self._active_specs().inputs

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        """The outputs, in graph order."""
        return self._active_specs().outputs

    @property
    def chosen(self) -> str | None:
        """What the runner chose by itself for the model, for reports; None where it had no choice."""
        return None

    def activate(self) -> None:
        """Load the model; do nothing if it is loaded. Raises EngineError, MissingDependencyError."""
        if self._specs is not None:
            return
        if not self.path.is_file():
            raise EngineError(
                f"model '{self.path}'",
                got="no such file",
                expected="a model that `accuquant export` wrote",
                remedy="Check the path, or export the pipeline again",
            )
        if self.path.suffix == ".onnx":
            from accuquant.graph.soundness import check_sound  # not above: engines load without it

            check_sound(self.path, error=EngineError)
        try:
            specs = self.activate_impl()
        except AccuQuantError:
            raise
        except Exception as fault:  # each engine has exception classes of its own
            raise EngineError(
                f"model '{self.path}'",
                got=f"an error while loading ({last_line(fault)})",
                expected=f"a model that {self.engine} can load",
                remedy="The file is damaged or not supported; run `accuquant check` on it, or export again",
            ) from fault
        self._expected = tuple(_expectation(spec) for spec in specs.inputs)
        self._specs = specs

    def deactivate(self) -> None:
        """Release the model; do nothing if it is not loaded."""
        if self._specs is not None:
            self._specs = None
            self.deactivate_impl()

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once. `feeds` has one array an input, with the spec's dtype and fixed extents.

        The returned arrays belong to the caller: the next call does not write to them. Raises
        EngineError for an inactive runner, a wrong feed, and a failure inside the engine.
        """
        self._active_specs()
        self._check(feeds)
        with self._faults_of(feeds):
            return self.infer_impl(feeds)

    def prepare(self, feeds: Mapping[str, Array]) -> None:
        """Do what the first call with such `feeds` would do before it runs: compile for their shapes.

        `infer` does so by itself; a caller that times calls may want it apart. Raises EngineError.
        """
        self._active_specs()
        self._check(feeds)
        with self._faults_of(feeds):
            self.prepare_impl(feeds)

    def prepare_impl(self, feeds: Mapping[str, Array]) -> None:  # noqa: B027, most have nothing to do
        """Compile for checked feeds; nothing where `activate_impl` left nothing to do."""

    @abstractmethod
    def activate_impl(self) -> ModelSpecs:
        """Load the model from `self.path` and return its inputs and outputs."""

    @abstractmethod
    def infer_impl(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model on checked feeds; return arrays that no later call overwrites."""

    @abstractmethod
    def deactivate_impl(self) -> None:
        """Drop every reference to the engine."""

    def __enter__(self) -> Runner:
        self.activate()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.deactivate()

    @contextmanager
    def _faults_of(self, feeds: Mapping[str, Array]) -> Iterator[None]:
        """Turn whatever the engine raises for `feeds` into EngineError."""
        try:
            yield
        except AccuQuantError:
            raise
        except Exception as fault:  # each engine has exception classes of its own
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise EngineError(
                self.name,
                got=f"an error ({last_line(fault)}) for {shapes}",
                expected="shapes that fit together and enough memory",
                remedy="Use a smaller batch, or sizes that the network was exported for",
            ) from fault

    def _active_specs(self) -> ModelSpecs:
        if self._specs is None:
            raise EngineError(
                self.name,
                got="an inactive runner",
                expected="a loaded model",
                remedy="Call activate() first, or use the runner in a with statement",
            )
        return self._specs

    def _check(self, feeds: Mapping[str, Array]) -> None:
        # Every step of every image passes here: no allocation unless something is wrong.
        if len(feeds) != len(self._expected):
            raise self._wrong_names(feeds)
        for name, dtype, shape, spec in self._expected:
            array = feeds.get(name)
            if array is None:
                raise self._wrong_names(feeds)
            if not isinstance(array, np.ndarray) or array.dtype != dtype:
                raise self._wrong_dtype(spec, array)
            if array.ndim != len(shape):
                raise self._wrong_shape(spec, array)
            for extent, fixed in zip(array.shape, shape, strict=True):
                if fixed is not None and extent != fixed:
                    raise self._wrong_shape(spec, array)

    def _wrong_names(self, feeds: Mapping[str, Array]) -> EngineError:
        return EngineError(
            self.name,
            got=f"inputs {sorted(feeds)}",
            expected=f"{[name for name, *_ in self._expected]}",
            remedy="Pass each input of the exported network once, by its name",
        )

    def _wrong_dtype(self, spec: TensorSpec, array: object) -> EngineError:
        kind = str(array.dtype) if isinstance(array, np.ndarray) else type(array).__name__
        return EngineError(
            f"{self.name}, input '{spec.name}'",
            got=kind,
            expected=f"a numpy array of {spec.dtype}",
            remedy=f"Convert it: numpy.asarray(x, dtype='{spec.dtype}')",
        )

    def _wrong_shape(self, spec: TensorSpec, array: Array) -> EngineError:
        same_rank = array.ndim == len(spec.shape)
        batch = spec.shape[0] if spec.shape else ANY_EXTENT
        return EngineError(
            f"{self.name}, input '{spec.name}'",
            got=f"shape {list(array.shape)}",
            expected="[" + ", ".join(map(str, spec.shape)) + "]",
            remedy=(
                f"Use batches of {batch}, which this engine was built for, or export with a dynamic batch"
                if same_rank and isinstance(batch, int) and array.shape[0] != batch
                else "Pass the size that the network was exported for, or export with a dynamic size"
            ),
        )


def _expectation(
    spec: TensorSpec,
) -> tuple[str, np.dtype[Any], tuple[int | None, ...], TensorSpec]:
    fixed = tuple(extent if isinstance(extent, int) else None for extent in spec.shape)
    return spec.name, np.dtype(spec.dtype), fixed, spec
