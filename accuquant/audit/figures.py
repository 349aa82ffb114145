"""The figures of an audit as text, for the terminal and for the page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from accuquant.audit.engine_audit import EngineAudit
from accuquant.audit.kernel_kind import KERNEL_KINDS
from accuquant.audit.pair_fusion import PairFusion


@dataclass(frozen=True)
class Row:
    """One line of the side-by-side table; an indented one is a part of the line above."""

    name: str
    cells: tuple[str, ...]
    indented: bool = False


def summary_rows(audits: Sequence[EngineAudit]) -> list[Row]:
    """Return the lines that compare `audits`, without what is unknown and parts that are zero everywhere."""
    return [row for row in _rows(audits) if not all(cell in _nothing(row) for cell in row.cells)]


def grouped_pairs(audit: EngineAudit) -> list[tuple[PairFusion, ...]]:
    """Return the pairs that did not fuse, those of one outcome and one kind of reason together, most first.

    Names in quotes do not tell two reasons apart.
    """
    groups: dict[tuple[str, str, str], list[PairFusion]] = defaultdict(list)
    for pair in audit.pairs:
        if pair.outcome != "fused":
            groups[pair.outcome, _without_names(pair.reason), pair.remedy].append(pair)
    return sorted((tuple(pairs) for pairs in groups.values()), key=len, reverse=True)


def megabytes(count: float) -> str:
    """Format bytes as MB (powers of 1000)."""
    return f"{count / 1e6:.1f} MB"


_UNKNOWN = "?"
_ZERO = ("0", "0.0 %", "0.0 MB", "0.00 ms")


def _nothing(row: Row) -> tuple[str, ...]:
    return (_UNKNOWN, *_ZERO) if row.indented else (_UNKNOWN,)


def milliseconds(value: float | None) -> str:
    """Format a time, "?" where nothing was run."""
    return _UNKNOWN if value is None else f"{value:.2f} ms"


def _rows(audits: Sequence[EngineAudit]) -> Iterator[Row]:
    def row(name: str, cell: Callable[[EngineAudit], str], *, indented: bool = False) -> Row:
        return Row(name, tuple(cell(audit) for audit in audits), indented)

    yield row("convolutions and matrix products", lambda a: f"{a.macs / 1e9:.2f} GMAC")
    for precision in dict.fromkeys(item.precision for audit in audits for item in audit.work):
        yield row(f"in {precision}", lambda a, p=precision: f"{100 * a.share(p):.1f} %", indented=True)  # type: ignore[misc]
    yield row("one run", lambda a: milliseconds(a.milliseconds))
    for kind in KERNEL_KINDS:
        yield row(
            f"time in {kind}",
            lambda a, k=kind: milliseconds(a.kind_milliseconds.get(k)),  # type: ignore[misc]
            indented=True,
        )
    yield row("kernels in one run", lambda a: str(a.num_kernels))
    for kind in KERNEL_KINDS:
        yield row(kind, lambda a, k=kind: str(a.kernels[k]), indented=True)  # type: ignore[misc]
    yield row("memory traffic of one run", lambda a: megabytes(a.traffic))
    yield row("QDQ pairs that fused", lambda a: f"{a.outcomes['fused']} of {len(a.pairs)}")
    yield row(
        "quantized layers that leave scale or bias to another kernel",
        lambda a: _UNKNOWN if a.milliseconds is not None else str(a.num_apart),
    )
    yield row(
        "weights in the engine",
        lambda a: megabytes(sum(a.weight_bytes.values())) if a.weight_bytes else _UNKNOWN,
    )
    for precision in dict.fromkeys(name for audit in audits for name in audit.weight_bytes):
        yield row(
            f"in {precision}",
            lambda a, p=precision: megabytes(a.weight_bytes.get(p, 0.0)),  # type: ignore[misc]
            indented=True,
        )
    yield row("engine file", lambda a: megabytes(a.plan_bytes) if a.plan_bytes else _UNKNOWN)
    yield row(
        "memory for activations", lambda a: megabytes(a.activation_bytes) if a.activation_bytes else _UNKNOWN
    )
    yield row("engines of this kind", lambda a: str(a.num_engines))
    yield row("compiled in", lambda a: f"{a.seconds:.1f} s")


def _without_names(text: str) -> str:
    return "'".join(text.split("'")[::2])
