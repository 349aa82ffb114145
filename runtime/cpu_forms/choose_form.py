"""Choose the form of a graph by timing the calls that the forms take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from accuquant._util.interleave import time_interleaved
from accuquant.runtime.cpu_forms.form import CpuForm, Norms, Products, ZeroPoints
from accuquant.runtime.cpu_forms.form_choice import FormChoice, FormTime
from accuquant.runtime.runner import Array

#: Seconds that a choice may take. It is made once for a file on a machine, whose first image waits for it.
BUDGET = 4.0
#: Milliseconds of a call below which nothing is measured: what a form saves is lost in the loop around it.
SMALLEST_CALL = 4.0
#: What a form has to save before it is taken in place of the rule's.
MIN_SAVING = 0.03
#: How far, relative to its norm, an output may be from the rule's: as far as rounding brings it.
MAX_DISTANCE = 0.1
_ROUNDS = 5
#: Time that the process computed, on all of its threads: on a busy machine, too, forms are told apart.
_CLOCK = time.process_time

#: Runs the network in a form on the inputs at hand -> its first output.
Call = Callable[[], Array]


@dataclass(frozen=True)
class FormTraits:
    """What a graph has that forms differ in."""

    shifts: bool
    pads: bool
    norms: bool
    products: bool = False

    def restrict(self, form: CpuForm) -> CpuForm:
        """Return `form` with "written" where it would change nothing."""
        points: ZeroPoints = form.zero_points if self.shifts else "written"
        if points == "bordered" and not self.pads:
            points = "written"
        return replace(
            form,
            zero_points=points,
            norms=form.norms if self.norms else "written",
            products=form.products if self.products else "written",
        )

    def changes(self, form: CpuForm) -> tuple[CpuForm, ...]:
        """Return the forms that differ from `form` in its zero-points, its norms, then its products."""
        points: tuple[ZeroPoints, ...] = ("inside", "bordered", "written")
        norms: tuple[Norms, ...] = ("channels", "written")
        products: tuple[Products, ...] = ("convolutions", "written")
        others = (
            *(replace(form, zero_points=one) for one in points),
            *(replace(form, norms=one) for one in norms),
            *(replace(form, products=one) for one in products),
        )
        return tuple(dict.fromkeys(self.restrict(other) for other in others))


def choose_form(
    ruled: CpuForm,
    why: str,
    traits: FormTraits,
    compile_form: Callable[[CpuForm], Call],
    release: Callable[[CpuForm], None] = lambda form: None,
) -> FormChoice:
    """Return `ruled`, the rule's form, or one that is faster by MIN_SAVING in interleaved calls.

    Forms are tried one change at a time, in at most BUDGET seconds: a graph whose compilation alone would
    exceed it keeps the rule's. `compile_form` makes the call of a form, `release` is told of each that is
    out: two at most are needed at a time. Times are what the processor computed, not what the clock showed.
    """
    best = traits.restrict(ruled)
    if not (traits.shifts or traits.norms or traits.products):
        return FormChoice(best, "rule", "there is nothing to rewrite")
    began = time.monotonic()
    call = compile_form(best)
    compiling = time.monotonic() - began
    if compiling > BUDGET / 3:
        return FormChoice(best, "rule", f"{why}; it compiles in {compiling:.0f} s, too long to try others")
    output, taken = _timed(call)
    if taken * 1e3 < SMALLEST_CALL:
        return FormChoice(best, "rule", f"{why}; a call takes {taken * 1e3:.1f} ms, too little to measure")
    # What comes next is compiled once and called as often as it is timed, beside the best so far.
    cost = time.monotonic() - began + 4 * (_ROUNDS + 1) * taken
    times: dict[CpuForm, float] = {}
    refused: set[CpuForm] = set()
    notes: list[str] = []
    while other := next(
        (form for form in traits.changes(best) if form not in {best, *times, *refused}), None
    ):
        if time.monotonic() - began + cost > BUDGET:
            notes.append("there was no time for others")
            break
        rival = compile_form(other)
        distance = float(np.linalg.norm(rival() - output) / max(float(np.linalg.norm(output)), 1e-30))
        if not distance <= MAX_DISTANCE:
            refused.add(other)
            notes.append(f"{other} is off by {distance:.2g}")
            del rival
            release(other)
            continue
        measured = time_interleaved(
            {"best": call, "rival": rival}, rounds=_ROUNDS, warm_up=1, lead_in=1, clock=_CLOCK
        )
        times[best], times[other] = measured["best"].median, measured["rival"].median
        if times[other] < (1 - MIN_SAVING) * times[best]:
            best, other, call = other, best, rival
        del rival
        release(other)
    if not times:
        return FormChoice(best, "rule", "; ".join([why, *notes]))
    said = f"{times[best]:.1f} ms of computing a call, other forms {', '.join(_others(times, best))}"
    return FormChoice(
        best, "measurement", "; ".join([said, *notes]), tuple(FormTime(*one) for one in times.items())
    )


def _others(times: dict[CpuForm, float], best: CpuForm) -> list[str]:
    return [f"{taken:.1f}" for form, taken in times.items() if form != best]


def _timed(call: Call) -> tuple[Array, float]:
    """Return the output of a call, and the seconds of a second one."""
    output = call()
    began = time.perf_counter()
    call()
    return output, time.perf_counter() - began
