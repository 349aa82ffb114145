"""Render an audit as one HTML page without external resources."""

from __future__ import annotations

from accuquant.audit.audit_charts import network_strip, stacked_bars
from accuquant.audit.audit_model import AuditReport
from accuquant.audit.engine_audit import EngineAudit
from accuquant.audit.figures import grouped_pairs, megabytes, milliseconds, summary_rows
from accuquant.audit.kernel_kind import KERNEL_KINDS
from accuquant.audit.pair_fusion import OUTCOMES

TEMPLATE = "audit_page.html.j2"
_PRECISION_ORDER = ("int8", "fp8", "fp16", "bf16", "fp32")


def render(report: AuditReport) -> str:
    """Return the page of `report`."""
    import jinja2
    from markupsafe import Markup

    loaders = [
        jinja2.PackageLoader(package, ".") for package in ("accuquant.audit", "accuquant.verification.report")
    ]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    audits = [report.subject, *([report.reference] if report.reference else [])]
    charts = {
        "work": stacked_bars([(a.name, precision_parts(a)) for a in audits], unit="GMAC"),
        "kernels": stacked_bars([(a.name, kernel_parts(a)) for a in audits], unit="kernels"),
        "weights": stacked_bars([(a.name, weight_parts(a)) for a in audits], unit="MB"),
        "network": network_strip(report.subject),
    }
    if report.subject.milliseconds is not None:
        charts["time"] = stacked_bars([(a.name, time_parts(a)) for a in audits], unit="ms")
    return environment.get_template(TEMPLATE).render(
        subject=report.subject,
        audits=audits,
        rows=summary_rows(audits),
        groups=grouped_pairs(report.subject),
        outcomes=OUTCOMES,
        figures=_figures(report),
        charts={name: Markup(svg) for name, svg in charts.items()},
    )


def precision_parts(audit: EngineAudit) -> list[tuple[str, float]]:
    """Return the GMAC in each precision."""
    names = sorted({item.precision for item in audit.work}, key=_precision_rank)
    return [(name, audit.share(name) * audit.macs / 1e9) for name in names]


def kernel_parts(audit: EngineAudit) -> list[tuple[str, float]]:
    """Return the kernels of each kind that a run launches."""
    return [(kind, audit.kernels[kind]) for kind in KERNEL_KINDS if kind != "sync"]


def weight_parts(audit: EngineAudit) -> list[tuple[str, float]]:
    """Return the MB of constants in each precision."""
    return [
        (name, audit.weight_bytes[name] / 1e6) for name in sorted(audit.weight_bytes, key=_precision_rank)
    ]


def time_parts(audit: EngineAudit) -> list[tuple[str, float]]:
    """Return the milliseconds of each kind of kernel in one run; none where nothing was run."""
    return [(kind, time) for kind, time in audit.kind_milliseconds.items() if kind != "sync"]


def _last_figure(subject: EngineAudit, reference: EngineAudit | None) -> dict[str, str]:
    """Return the size of the engine, or the time of a run where the engine is no file."""
    if not subject.plan_bytes:
        there = f"{milliseconds(reference.milliseconds)} in {reference.name}" if reference else ""
        value, label = f"{subject.milliseconds or 0:.1f}", "one run, the kernels' counters on"
        return {"value": value, "unit": "ms", "label": label, "note": there}
    size = f"{megabytes(reference.plan_bytes)} there" if reference else ""
    return {"value": megabytes(subject.plan_bytes), "unit": "", "label": "engine file", "note": size}


def _figures(report: AuditReport) -> list[dict[str, str]]:
    subject, reference = report.subject, report.reference
    beside = f"{reference.num_kernels} in {reference.name}" if reference else ""
    return [
        {
            "value": f"{100 * subject.share(subject.quantized):.1f}",
            "unit": "%",
            "label": f"of convolution and GEMM work in {subject.quantized}",
            "note": f"{subject.macs / 1e9:.2f} GMAC a run",
        },
        {
            "value": str(subject.outcomes["fused"]),
            "unit": f"of {len(subject.pairs)}",
            "label": "QDQ pairs fused",
            "note": "",
        },
        {"value": str(subject.num_kernels), "unit": "", "label": "kernels in one run", "note": beside},
        _last_figure(subject, reference),
    ]


def _precision_rank(name: str) -> tuple[int, str]:
    known = name in _PRECISION_ORDER
    return (_PRECISION_ORDER.index(name) if known else len(_PRECISION_ORDER), name)
