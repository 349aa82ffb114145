"""Which of two engines an audit expects to be the faster: int8, FP8 or float16, without running either."""

from __future__ import annotations

from dataclasses import dataclass

from accuquant.audit.engine_audit import QUANTIZED, EngineAudit

#: What one has to save to be preferred: less is within what an audit cannot see.
MIN_SAVING = 0.03
#: The time of a product in int8 or FP8 next to one in float16: tensor cores do twice as many a clock (NVIDIA,
#: "Ada GPU architecture", appendix A; RTX Blackwell alike).
_LEVELS_COST = 0.5


@dataclass(frozen=True)
class Verdict:
    """How much less the audited engine costs than another; `work`, `kernels` and `traffic` are ratios to it.

    `saving` is 1 less their mean: what bounds a network, products, launches or memory, an audit cannot tell.
    """

    name: str
    other: str
    target: str
    work: float
    kernels: float
    traffic: float

    @classmethod
    def of(cls, subject: EngineAudit, other: EngineAudit) -> Verdict:
        """Compare two audits of the same network on the same target."""
        return cls(
            subject.name,
            other.name,
            subject.target,
            _work(subject) / _work(other),
            subject.num_kernels / max(1, other.num_kernels),
            subject.traffic / max(1.0, other.traffic),
        )

    @property
    def saving(self) -> float:
        """The share of the other's cost that it saves; below zero where it costs more."""
        return 1 - (self.work + self.kernels + self.traffic) / 3

    @property
    def preferred(self) -> str | None:
        """The name of the one that should be faster, None where they are alike."""
        if abs(self.saving) < MIN_SAVING:
            return None
        return self.name if self.saving > 0 else self.other

    def __str__(self) -> str:
        ratios = (
            f"{self.work:.2f} times the time of products, {self.kernels:.2f} times the kernels, "
            f"{self.traffic:.2f} times the traffic of {self.other}"
        )
        if self.preferred is None:
            said = f"no clear difference on {self.target}: take the one whose images are closer"
        else:
            said = f"{self.preferred} should be faster on {self.target}"
        return f"By the audit, nothing was timed: {said} ({self.name} has {ratios})."


def _work(audit: EngineAudit) -> float:
    """Return the time of all products, 1 where they all run in float16."""
    inside = sum(audit.share(precision) for precision in QUANTIZED)
    return 1 - inside * (1 - _LEVELS_COST)
