"""Decide between lowerings from the figures of their engines: speed against fidelity and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from accuquant.export.export_options import Lowering
from accuquant.export.for_target.candidates import Candidate

#: What a lowering has to save before anything is paid for it. Less is within the noise of a benchmark.
MIN_SAVING = 0.03
#: What it has to save for each decibel that int8 noise grows by. A decibel is a quarter more noise power.
SAVING_PER_DB = 0.05
#: The engines of all step groups together, in bytes. The smallest cards that are compiled for have 4 GB;
#: a larger set is felt there, on disk, and in the time that compiling and loading take.
MAX_GROUP_BYTES = 256e6
#: What `hybrid` saved at least on the networks that were audited: docs/tensorrt.md.
RULE_SAVING = 0.05


@dataclass(frozen=True)
class EngineFigures:
    """What one lowering's engine costs.

    `engines` is how many of them the model needs, `engine_bytes` the size of one, `kernels` and `traffic`
    (bytes) those of one run, of which `reformats` only move data. `milliseconds` is the median time of one
    call where it was measured. `noise_db` is how much more int8 noise there is than with scales of each
    step group's own.
    """

    lowering: Lowering
    engines: int
    engine_bytes: int
    kernels: int = 0
    reformats: int = 0
    traffic: float = 0.0
    milliseconds: float | None = None
    noise_db: float = 0.0

    @property
    def total_bytes(self) -> int:
        """The bytes of all engines together."""
        return self.engines * self.engine_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Decision:
    """The lowering to take, and why, as one clause."""

    lowering: Lowering
    reason: str


def decide(figures: Sequence[EngineFigures], too_large: Mapping[Lowering, str] | None = None) -> Decision:
    """Return the lowering to take of those in `figures`; `rescale` has to be among them.

    `rescale` is exact and one engine, so another one has to pay for what it costs:
    - `per-group` is exact too, but an engine a step group: it is taken where it saves MIN_SAVING and all
      of them together stay below MAX_GROUP_BYTES.
    - `hybrid` is one engine, but rounds more coarsely in some layers: it is taken where it saves MIN_SAVING
      and SAVING_PER_DB for each decibel of noise.
    - Where both pay, `per-group` is taken unless `hybrid` saves MIN_SAVING more: images come first.
    `too_large` says of lowerings that were not compiled how large they would be.
    """
    base = next(one for one in figures if one.lowering == "rescale")
    paying = [one for one in figures if one is not base and _pays(one, base)]
    # an exact lowering gets a head start of MIN_SAVING over one that is not
    best = max(paying, key=lambda one: saving(one, base) + MIN_SAVING * (one.noise_db == 0), default=base)
    others = [one for one in figures if one is not best]
    clauses = [_praise(best, base), *(_blame(one, best, base) for one in others if one is not base)]
    clauses += [f"{lowering} would be {text}" for lowering, text in (too_large or {}).items()]
    return Decision(best.lowering, "; ".join(clauses))


def decide_by_rule(candidates: Sequence[Candidate], why: str) -> Decision:
    """Return the lowering to take without figures of engines; `why` says what is missing.

    `hybrid` where its noise is worth RULE_SAVING, else `rescale`. How large the engines of `per-group` would
    be is not known, so it is not taken.
    """
    hybrid = next((one for one in candidates if one.lowering == "hybrid"), None)
    if hybrid is not None and hybrid.noise_db * SAVING_PER_DB <= RULE_SAVING:
        text = (
            f"{hybrid.noise_db:.1f} dB more int8 noise for what saved about {100 * RULE_SAVING:.0f} % or more"
        )
        return Decision("hybrid", f"{text} on other networks ({why})")
    text = (
        "hybrid would share no scale"
        if hybrid is None
        else f"hybrid makes {hybrid.noise_db:.1f} dB more int8 noise"
    )
    return Decision("rescale", f"one engine that rounds as calibrated; {text} ({why})")


def saving(one: EngineFigures, base: EngineFigures) -> float:
    """Return the share of a call of `base` that `one` saves: of its time, else of its kernels and traffic.

    Without times, launches and memory count alike: a small network is bound by the former, a large one by
    the latter. Convolutions are the same in every lowering.
    """
    if one.milliseconds is not None and base.milliseconds is not None:
        return 1 - one.milliseconds / base.milliseconds
    return 1 - (one.kernels / base.kernels + one.traffic / base.traffic) / 2


def _pays(one: EngineFigures, base: EngineFigures) -> bool:
    if one.engines > 1 and one.total_bytes > MAX_GROUP_BYTES:
        return False
    return saving(one, base) >= max(MIN_SAVING, SAVING_PER_DB * one.noise_db)


def _praise(best: EngineFigures, base: EngineFigures) -> str:
    if best is base:
        return f"one engine that rounds as calibrated, {_cost(base)}"
    price = f"{_size(best)}, rounds as calibrated"
    if best.lowering == "hybrid":
        price = f"{best.noise_db:.1f} dB more int8 noise" if best.noise_db else "no more noise of FP8"
    return f"{_cost(best)}, {_percent(best, base)} than rescale ({_cost(base)}); {price}"


def _blame(one: EngineFigures, best: EngineFigures, base: EngineFigures) -> str:
    """Say why `one` is not it."""
    saved = _percent(one, base)
    if one.engines > 1 and one.total_bytes > MAX_GROUP_BYTES:
        return f"{one.lowering} would be {_size(one)}"
    if _pays(one, base):
        return f"{one.lowering} saves no more that matters ({saved})"
    noise = f" for {one.noise_db:.1f} dB more int8 noise" if one.noise_db else ""
    return f"{one.lowering} saves too little ({saved}{noise})"


def _cost(one: EngineFigures) -> str:
    if one.milliseconds is not None:
        return f"{one.milliseconds:.2f} ms"
    return f"{one.kernels} kernels that move {one.traffic / 1e6:.1f} MB"


def _percent(one: EngineFigures, base: EngineFigures) -> str:
    share = 100 * saving(one, base)
    return f"{share:.1f} % less" if share >= 0 else f"{-share:.1f} % more"


def _size(one: EngineFigures) -> str:
    return f"{one.engines} engines of {one.engine_bytes / 1e6:.0f} MB"
