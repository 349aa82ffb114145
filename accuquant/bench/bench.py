"""Time every engine that is there in one interleaved run, and say which to use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accuquant._util.interleave import Times, time_interleaved
from accuquant._util.progress import Progress, Silent
from accuquant._util.real_model import real_model
from accuquant._util.scratch import scratch_folder
from accuquant.audit.audit_model import write_float_twin
from accuquant.bench.contender import Contender, LeftOut
from accuquant.bench.exported import exported_contenders, float_contenders, levels_of
from accuquant.bench.inputs import Inputs, make_inputs
from accuquant.bench.recommend import recommend
from accuquant.errors import EngineError, UsageError
from accuquant.manifest import Manifest

if TYPE_CHECKING:
    from accuquant.pipelines.source import Source

#: Seconds before each call, in which another engine's threads stop spinning.
_PAUSE = 0.02


@dataclass(frozen=True)
class BenchReport:
    """What was measured. `times` is keyed by contender name; `left_out` says what is missing and why."""

    contenders: tuple[Contender, ...]
    times: Mapping[str, Times]
    left_out: tuple[LeftOut, ...]
    recommendation: str
    batch_size: int
    rounds: int
    chosen: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "batch_size": self.batch_size,
            "rounds": self.rounds,
            "results": [
                {
                    "name": contender.name,
                    "engine": contender.engine,
                    "precision": contender.precision,
                    "device": contender.device,
                    "p99_ms": self.times[contender.name].percentile(99),
                    **self.times[contender.name].to_dict(),
                }
                for contender in self.contenders
            ],
            "left_out": [vars(entry) for entry in self.left_out],
            "chosen": list(self.chosen),
            "recommendation": self.recommendation,
        }


def run_bench(
    folder: Path,
    *,
    reference: Source | None = None,
    against: Path | None = None,
    batch_size: int = 1,
    rounds: int = 30,
    warm_up: int = 3,
    num_threads: int | None = None,
    trust_engines: bool = False,
    engine_precision: str = "auto",
    progress: Progress | None = None,
) -> BenchReport:
    """Time one network call of the exported folder in every engine, in interleaved rounds.

    Beside the exported int8 network it times the same network without QDQ pairs, and that of `reference` in
    PyTorch where it is given. `against` is another export of the same network, in the other format: an int8
    and an FP8 one meet in the same rounds. `engine_precision` is what OpenVINO computes in around int8.
    Raises EngineError for a folder that is damaged, or where nothing runs.
    """
    progress = progress or Silent()
    folder = Path(folder)
    manifest = Manifest.load(folder)
    manifest.check_files(folder)
    if against is not None:
        _check_other(folder, manifest, Path(against))
    inputs = make_inputs(manifest, batch_size)
    with ExitStack() as stack:
        progress.stage("loading engines", 0)
        found = list(
            _everything(
                folder,
                manifest,
                reference,
                inputs,
                num_threads,
                trust_engines,
                engine_precision,
                progress,
                stack,
            )
        )
        if against is not None:
            found += exported_contenders(
                Path(against), inputs,
                num_threads=num_threads, trust_engines=trust_engines,
                engine_precision=engine_precision, stack=stack,
            )  # fmt: skip
        contenders = tuple(entry for entry in found if isinstance(entry, Contender))
        left_out = tuple(entry for entry in found if isinstance(entry, LeftOut))
        if not contenders:
            raise EngineError(
                f"folder '{folder}'",
                got="no engine that runs it: " + "; ".join(f"{e.name}: {e.reason}" for e in left_out),
                expected="at least one",
                remedy="Run `accuquant doctor`",
            )
        progress.stage(f"timing {', '.join(c.name for c in contenders)}", warm_up + rounds)
        times = time_interleaved(
            {contender.name: contender.call for contender in contenders},
            rounds=rounds,
            warm_up=warm_up,
            pause=_PAUSE,
            lead_in=1,
            after_round=progress.advance,
        )
        chosen = tuple(line for contender in contenders for line in contender.chosen())
    recommendation = recommend(contenders, times)
    return BenchReport(contenders, times, left_out, recommendation, batch_size, rounds, chosen)


def _check_other(folder: Path, manifest: Manifest, against: Path) -> None:
    """Raise UsageError unless `against` exports the same network in the other format."""
    other = Manifest.load(against)
    other.check_files(against)
    formats = [levels_of(place) for place in (folder, against)]
    if other.model_hash != manifest.model_hash:
        got = "the export of another network"
    elif formats[0] == formats[1]:
        got = f"an export in {formats[0]}, as '{folder}' is"
    else:
        return
    raise UsageError(
        f"--against '{against}'",
        got=got,
        expected="the same network in the other format, int8 or fp8",
        remedy="Calibrate with --format, and export that recipe",
    )


def _everything(
    folder: Path,
    manifest: Manifest,
    reference: Source | None,
    inputs: Inputs,
    num_threads: int | None,
    trust_engines: bool,
    engine_precision: str,
    progress: Progress,
    stack: ExitStack,
) -> Iterator[Contender | LeftOut]:
    yield from exported_contenders(
        folder,
        inputs,
        num_threads=num_threads,
        trust_engines=trust_engines,
        engine_precision=engine_precision,
        stack=stack,
    )
    scratch = stack.enter_context(scratch_folder("bench"))
    twin = write_float_twin(real_model(manifest.graph_paths(folder)[0]), scratch)
    yield from float_contenders(
        manifest, twin, inputs, num_threads=num_threads, progress=progress, stack=stack
    )
    if reference is None:
        yield LeftOut("torch", "no --reference SOURCE to take the float network from")
        return
    from accuquant.bench.torch_network import torch_contenders

    yield from torch_contenders(reference.called_as(manifest.signature), inputs)
