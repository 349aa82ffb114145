"""Take the correlated part and the bias of the quantization error off the graph's prediction."""

from __future__ import annotations

import onnx_ir as ir

from accuquant.errors import ExportError
from accuquant.export.passes.step_group_index import step_group_index
from accuquant.graph.patch import Patch, dtype_of
from accuquant.prediction_correction import PredictionCorrection

_NAME = "accuquant/prediction"


class CorrectPredictionPass(ir.passes.InPlacePass):
    """Correct the first output by the timestep, so that every loop around the graph applies it.

    Rules:
    - output -> Sub bias[s] -> Mul factor[s] -> output, in the output's type. The step s is derived from the
      timestep input, by nodes of its own: steps and step groups are different ranges.
    - The corrected value takes over the output's name.
    Raises ExportError where the graph has no timestep input, or the output other channels.
    """

    def __init__(
        self, correction: PredictionCorrection, *, timestep: str = "timestep", timestep_divisor: float = 1.0
    ) -> None:
        self.correction = correction
        self.timestep = timestep
        self.timestep_divisor = timestep_divisor

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules to `model`, in place."""
        graph = model.graph
        old = graph.outputs[0]
        producer, dtype = old.producer(), dtype_of(old)
        factor, bias = self.correction.along(self._rank(old))
        assert producer is not None, "a network computes its prediction"
        step = step_group_index(
            graph, self.correction.steps, self.timestep_divisor, name=self.timestep, prefix=f"{_NAME}/step"
        )
        patch = Patch(graph, _NAME)
        chosen = [
            patch.op(
                "Gather", [patch.constant(values.astype(dtype), name), step], name=f"Gather_{name}", axis=0
            )
            for name, values in (("bias", bias), ("factor", factor))
        ]
        unbiased = patch.op("Sub", [old, chosen[0]], name="Sub", like=old)
        new = patch.op("Mul", [unbiased, chosen[1]], name="Mul", like=old)
        patch.insert_after(producer)
        name, old.name = old.name, f"{_NAME}/uncorrected"
        new.name = name
        graph.outputs[0] = new
        return ir.passes.PassResult(model, modified=True)

    def _rank(self, output: ir.Value) -> int:
        """Return the rank of the prediction; check its channels where the graph says how many there are."""
        shape = output.shape
        rank = 4 if shape is None else shape.rank()
        channels = None if shape is None else shape[2 if rank == 3 else 1]
        wanted = self.correction.factor.shape[1]
        if isinstance(channels, int) and channels != wanted:
            raise ExportError(
                f"output '{output.name}'",
                got=f"{channels} channels",
                expected=f"{wanted}, for which the recipe has a correction",
                remedy="Export the pipeline that was calibrated",
            )
        return rank
