"""AccuQuant: take a trained diffusion model to int8 on real engines without losing its images.

The names in `__all__` are the face: what a script may rely on. Everything else may move.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

#: Each name of the face -> the module that it lives in, which is imported when the name is first used.
# No name may be that of a module of this package: importing the module would put it in the name's place.
# So the exports are called export_pipeline and export_onnx, not export.
_HOMES = {
    "AccuQuantError": "accuquant.errors",
    "CalibrationSettings": "accuquant.calibration.calibration_settings",
    "EngineControlNet": "accuquant.runtime.engine_control_net",
    "EngineUNet": "accuquant.runtime.engine_unet",
    "EvaluationSettings": "accuquant.evaluation.evaluation_settings",
    "ExportOptions": "accuquant.export.export_options",
    "LoopProfile": "accuquant.runtime.loop_profile",
    "Recipe": "accuquant.recipe",
    "Task": "accuquant.pipelines.task",
    "calibrate": "accuquant.calibration.calibrate",
    "calibrate_decoder": "accuquant.decoder_calibration",
    "check_model": "accuquant.export.lint.check_model",
    "engine_parts": "accuquant.runtime.engine_parts",
    "estimate": "accuquant.calibration.estimate",
    "evaluate": "accuquant.evaluation.evaluate",
    "export_onnx": "accuquant.export.for_target.for_onnx",
    "export_pipeline": "accuquant.export.for_target.for_pipeline",
    "feed_forward_source": "accuquant.pipelines.source",
    "load_source": "accuquant.pipelines.source",
    "observe_onnx": "accuquant.observation.observe_onnx",
    "profiled": "accuquant.pipeline_profile",
    "sample": "accuquant.sample_folder",
    "verify": "accuquant.verification.verify",
    "write_html": "accuquant.verification.report.html",
}

if TYPE_CHECKING:
    from accuquant.calibration.calibrate import calibrate
    from accuquant.calibration.calibration_settings import CalibrationSettings
    from accuquant.calibration.estimate import estimate
    from accuquant.decoder_calibration import calibrate_decoder
    from accuquant.errors import AccuQuantError
    from accuquant.evaluation.evaluate import evaluate
    from accuquant.evaluation.evaluation_settings import EvaluationSettings
    from accuquant.export.export_options import ExportOptions
    from accuquant.export.for_target.for_onnx import export_onnx
    from accuquant.export.for_target.for_pipeline import export_pipeline
    from accuquant.export.lint.check_model import check_model
    from accuquant.observation.observe_onnx import observe_onnx
    from accuquant.pipeline_profile import profiled
    from accuquant.pipelines.source import feed_forward_source, load_source
    from accuquant.pipelines.task import Task
    from accuquant.recipe import Recipe
    from accuquant.runtime.engine_control_net import EngineControlNet
    from accuquant.runtime.engine_parts import engine_parts
    from accuquant.runtime.engine_unet import EngineUNet
    from accuquant.runtime.loop_profile import LoopProfile
    from accuquant.sample_folder import sample
    from accuquant.verification.report.html import write_html
    from accuquant.verification.verify import verify
else:  # hidden from type checkers, which would take every misspelt name for an Any

    def __getattr__(name):
        """Import a name of the face when it is first used: not every script needs torch."""
        if name not in _HOMES:
            raise AttributeError(f"module 'accuquant' has no attribute '{name}'")
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


__all__ = [
    "AccuQuantError",
    "CalibrationSettings",
    "EngineControlNet",
    "EngineUNet",
    "EvaluationSettings",
    "ExportOptions",
    "LoopProfile",
    "Recipe",
    "Task",
    "__version__",
    "calibrate",
    "calibrate_decoder",
    "check_model",
    "engine_parts",
    "estimate",
    "evaluate",
    "export_onnx",
    "export_pipeline",
    "feed_forward_source",
    "load_source",
    "observe_onnx",
    "profiled",
    "sample",
    "verify",
    "write_html",
]
