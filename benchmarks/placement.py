"""Compare AccuQuant's QDQ placement with Model Optimizer's, by what TensorRT makes of each.

    python benchmarks/placement.py
    python benchmarks/placement.py --model sd15 --targets sm89

Compiles the same UNet (random weights) in fp16 and in fp16 + int8 and reads the engines' layers from the
compiler's log: no GPU is needed, and nothing is timed. Scales are min-max of one forward; they do not change
what the compiler does.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from placement_graphs import CANDIDATES, load_network, write_candidate, write_float
from report import add_json_option, print_report

from accuquant.audit.audit_model import audit_model
from accuquant.audit.engine_audit import EngineAudit
from accuquant.engines import parse_targets


@dataclass(frozen=True)
class Figures:
    """What one engine is compared by."""

    target: str
    candidate: str
    int8_share: float
    kernels: int
    fills: int
    reformats: int
    traffic_mb: float
    engine_mb: float
    engines: int
    not_understood: int

    @classmethod
    def of(cls, audit: EngineAudit, candidate: str, engines: int) -> Figures:
        """Take the figures of an audit; a kernel that only writes int8 counts as a reformat."""
        return cls(
            target=audit.target,
            candidate=candidate,
            int8_share=audit.share("int8"),
            kernels=audit.num_kernels,
            fills=audit.kernels["fill"],
            reformats=audit.kernels["reformat"] + audit.kernels["quantize"],
            traffic_mb=audit.traffic / 1e6,
            engine_mb=audit.plan_bytes / 1e6,
            engines=engines,
            not_understood=len(audit.not_understood),
        )

    def cells(self) -> list[str]:
        """Return the row of the table."""
        return [
            f"{self.target} {self.candidate}",
            f"{100 * self.int8_share:.1f} %",
            str(self.kernels),
            str(self.kernels - self.fills),
            str(self.reformats),
            f"{self.traffic_mb:.0f} MB",
            f"{self.engines} x {self.engine_mb:.0f} MB" if self.engines > 1 else f"{self.engine_mb:.0f} MB",
        ]


def main() -> None:
    """Compile every candidate for every target."""
    arguments = parse_arguments()
    rows: list[Figures] = []
    with tempfile.TemporaryDirectory(prefix="placement-", dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        network = load_network(arguments.model)
        float_path = write_float(network, folder / "float.onnx")
        for candidate in arguments.candidates:
            path, engines = write_candidate(candidate, network, float_path, folder / candidate)
            for target in parse_targets(arguments.targets):
                rows.append(Figures.of(audit_model(path, target).subject, candidate, engines))
                print(*rows[-1].cells(), sep="  ", flush=True)
    print_report(
        f"{network.title}: what the compiler makes of each placement, fp16 around int8",
        ("", "int8 work", "kernels", "without fills", "reformats", "traffic", "engine"),
        [row.cells() for row in rows],
        notes=[f"{name}: {text}" for name, text in CANDIDATES.items() if name in arguments.candidates],
        record={"model": arguments.model, "rows": [asdict(row) for row in rows]},
        json_path=arguments.json,
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("cifar", "sd15"), default="cifar")
    parser.add_argument("--targets", default="sm86,sm89,sm120")
    parser.add_argument("--candidates", nargs="+", choices=tuple(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--scratch", type=Path, help="folder for graphs and engines (sd15: 15 GB)")
    add_json_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
