"""What an export is for: a CPU, the GPU of this machine, or one that need not be here."""

from __future__ import annotations

from dataclasses import dataclass

from accuquant._util.gpu import Gpu, find_gpu
from accuquant.engines.backend import resolve_backend
from accuquant.engines.target import TARGETS, Target, parse_target
from accuquant.errors import AccuQuantError, EngineError, MissingDependencyError, unknown_name
from accuquant.export_choice import CPU

GPU = "gpu"


@dataclass(frozen=True)
class ExportTarget:
    """The CPU (`gpu` is None), or a GPU by its compute capability, in this machine if `is_here`."""

    gpu: Target | None = None
    is_here: bool = True

    @property
    def name(self) -> str:
        """The name on the command line: "cpu" or "sm89"."""
        return self.gpu.name if self.gpu else CPU

    def __str__(self) -> str:
        return self.name


def resolve_target(name: str | None) -> ExportTarget:
    """Return the target called "cpu", "gpu" (that of this machine) or by its compute capability, like "sm89".

    None is the GPU of this machine where it answers and a TensorRT library is installed, else the CPU. Raises
    UsageError for an unknown name, EngineError for "gpu" where there is none.
    """
    if name is None:
        return _usable_gpu() or ExportTarget()
    if name == CPU:
        return ExportTarget()
    here = _gpu_or_fault()
    if name == GPU:
        if isinstance(here, AccuQuantError):
            raise _no_gpu(here)
        return ExportTarget(Target(*here.capability))
    if isinstance(here, Gpu) and here.target == name:  # TensorRT for RTX need not know it: tensorrt does
        return ExportTarget(Target(*here.capability))
    if name not in {target.name for target in TARGETS}:
        raise unknown_name("target", name, (CPU, GPU, *(target.name for target in TARGETS)))
    return ExportTarget(parse_target(name), is_here=False)


def _usable_gpu() -> ExportTarget | None:
    here = _gpu_or_fault()
    try:
        resolve_backend()
    except MissingDependencyError:
        return None
    return ExportTarget(Target(*here.capability)) if isinstance(here, Gpu) else None


def _gpu_or_fault() -> Gpu | AccuQuantError:
    try:
        return find_gpu()
    except (EngineError, MissingDependencyError) as fault:
        return fault


def _no_gpu(fault: AccuQuantError) -> EngineError:
    return EngineError(
        "--target gpu",
        got=fault.got,
        expected="an NVIDIA GPU in this machine",
        remedy="Say for which GPU, e.g. --target sm89, or give --target cpu",
    )
