from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import pytest

from accuquant._util.interleave import Times
from accuquant.runtime.cpu_forms import choose_form as module
from accuquant.runtime.cpu_forms.choose_form import Call, FormTraits, choose_form
from accuquant.runtime.cpu_forms.form import CpuForm

EVERYTHING = FormTraits(shifts=True, pads=True, norms=True)
RULED = CpuForm("inside", "channels")
SAME = np.ones(4, np.float32)


class Machine:
    """Times calls by a table instead of a clock, and notes what was compiled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: dict[CpuForm, float]) -> None:
        self.times, self.compiled = times, list[CpuForm]()
        self.outputs: dict[CpuForm, np.ndarray] = {}
        self._form_of: dict[int, CpuForm] = {}
        monkeypatch.setattr(module, "time_interleaved", self.time)
        monkeypatch.setattr(module, "_timed", lambda call: (call(), times[self._form_of[id(call)]] / 1e3))

    def compile(self, form: CpuForm) -> Call:
        self.compiled.append(form)

        def call() -> np.ndarray:
            return self.outputs.get(form, SAME)

        self._form_of[id(call)] = form
        self._kept = [*getattr(self, "_kept", []), call]
        return call

    def time(self, calls: Mapping[str, Callable[[], object]], **_: object) -> dict[str, Times]:
        return {name: Times((self.times[self._form_of[id(call)]],)) for name, call in calls.items()}


def table(**milliseconds: float) -> dict[CpuForm, float]:
    """Times by "inside_channels" and so on; 100 ms for forms that are not named."""
    times = {}
    for points in ("written", "inside", "bordered"):
        for norms in ("written", "channels"):
            form = CpuForm(points, norms)
            times[form] = milliseconds.get(f"{points}_{norms}", 100.0)
    return times


def test_the_fastest_is_found_one_change_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, table(inside_channels=50, bordered_channels=40, bordered_written=30))
    choice = choose_form(RULED, "as known", EVERYTHING, machine.compile)
    assert (choice.form, choice.basis) == (CpuForm("bordered", "written"), "measurement")
    assert {one.form: one.milliseconds for one in choice.times}[choice.form] == 30
    assert choice.reason.startswith("30.0 ms of computing a call")


def test_what_is_out_is_released_before_the_next_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, table(inside_channels=50, bordered_channels=40, bordered_written=30))
    machine.outputs[CpuForm("written", "channels")] = 2 * SAME
    released: list[CpuForm] = []
    most = 0

    def compile_form(form: CpuForm) -> Call:
        nonlocal most
        call = machine.compile(form)
        most = max(most, len(set(machine.compiled) - set(released)))
        return call

    choice = choose_form(RULED, "as known", EVERYTHING, compile_form, released.append)
    assert most == 2
    assert set(machine.compiled) - set(released) == {choice.form}


def test_the_rules_form_stays_where_others_save_less_than_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, table(inside_channels=50, inside_written=49, bordered_channels=49))
    assert choose_form(RULED, "as known", EVERYTHING, machine.compile).form == RULED


def test_a_form_that_computes_something_else_is_refused_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, table(inside_channels=50, inside_written=10))
    machine.outputs[CpuForm("inside", "written")] = 2 * SAME
    choice = choose_form(RULED, "as known", EVERYTHING, machine.compile)
    assert choice.form == RULED
    assert (
        "zero-points inside, norms written, ranks written, precision fp32, products written is off by 1"
        in choice.reason
    )


def test_calls_that_are_short_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, table(inside_channels=1))
    choice = choose_form(RULED, "as known", EVERYTHING, machine.compile)
    assert (choice.form, choice.basis, machine.compiled) == (RULED, "rule", [RULED])
    assert "as known; a call takes 1.0 ms" in choice.reason


def test_a_graph_that_compiles_for_long_keeps_the_rules_form(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, table())
    monkeypatch.setattr(module, "BUDGET", 0.0)
    choice = choose_form(RULED, "as known", EVERYTHING, machine.compile)
    assert (choice.basis, machine.compiled) == ("rule", [RULED])
    assert "too long to try others" in choice.reason


@pytest.mark.parametrize(
    ("traits", "form"),
    [
        (FormTraits(shifts=False, pads=False, norms=True), CpuForm("written", "channels")),
        (FormTraits(shifts=True, pads=False, norms=False), CpuForm("inside", "written")),
        (FormTraits(shifts=False, pads=False, norms=False), CpuForm()),
    ],
)
def test_only_what_a_graph_has_takes_another_form(
    traits: FormTraits, form: CpuForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, table())
    choose_form(RULED, "as known", traits, machine.compile)
    assert all(one in {traits.restrict(other) for other in table()} for one in machine.compiled)
    assert traits.restrict(RULED) == form


@pytest.mark.parametrize("faster", ["convolutions", "written"])
def test_products_as_convolutions_are_tried_from_either_side(
    faster: Literal["convolutions", "written"], monkeypatch: pytest.MonkeyPatch
) -> None:
    traits = FormTraits(shifts=False, pads=False, norms=False, products=True)
    forms = [CpuForm(), CpuForm(products="convolutions")]
    for ruled in forms:
        machine = Machine(monkeypatch, {form: 50 if form.products == faster else 100 for form in forms})
        choice = choose_form(ruled, "as known", traits, machine.compile)
        assert (choice.form, choice.basis) == (CpuForm(products=faster), "measurement")


def test_what_is_no_change_of_form_is_told_apart_on_every_precision() -> None:
    traits = FormTraits(shifts=True, pads=True, norms=True, products=True)
    for precision in ("fp32", "bf16"):
        form = CpuForm("inside", "channels", "equal", precision)
        others = traits.changes(form)
        assert {one.precision for one in others} == {precision}
        assert {one.ranks for one in others} == {"equal"}
        assert len(others) == 5


def test_zeros_in_place_of_a_padding_need_a_padding() -> None:
    traits = FormTraits(shifts=True, pads=False, norms=False)
    assert traits.restrict(CpuForm("bordered")) == CpuForm("written")
