"""Select the form of a file: as asked, as it was measured here before, or measured or ruled now."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

import accuquant
from accuquant._util.processor import cpu_flags
from accuquant.errors import EngineError
from accuquant.graph.skeleton import read_skeleton
from accuquant.runtime.cpu_forms.choose_form import Call, FormTraits, choose_form
from accuquant.runtime.cpu_forms.form import AS_WRITTEN, CpuForm, FloatPrecision
from accuquant.runtime.cpu_forms.form_choice import (
    NOT_OURS,
    FormChoice,
    choice_key,
    keep_choice,
    load_choice,
)
from accuquant.runtime.cpu_forms.precision_verdict import choose_precision
from accuquant.runtime.cpu_forms.rewrite import was_exported
from accuquant.runtime.cpu_forms.rule import form_by_rule

#: Counts what was changed about the forms: what was measured before does not hold for what they are now.
_REWRITING = 3


def select_form(
    path: Path,
    core: Any,
    model: Any,
    compile_form: Callable[[CpuForm], Any],
    release: Callable[[CpuForm], None],
    *,
    form: CpuForm | None,
    rewriting: bool,
    precision: FloatPrecision | Literal["auto"],
    threads: int | None,
) -> FormChoice:
    """Return the form that `model`, read from the file `path` and of static shapes, is to be run in.

    `compile_form` gives an infer request, `release` is told of each that is no more needed. What is measured
    is kept, under the graph without its large weights (no time depends on their values), the processor, the
    library, the threads and the image's size; batches share a choice. `form` is taken without a question;
    without `rewriting` the file stays as written, and only the precision is chosen. A `precision` that is
    named is taken.
    """
    if form is not None:
        return FormChoice(form, "as asked", "the caller named it")
    if not was_exported(model):
        return replace(NOT_OURS, form=replace(AS_WRITTEN, precision=_named(precision)))
    graph = graph_digest(path)
    place = name_of_place(core)
    around, note = choose_precision(precision, graph, place)
    if not rewriting:
        plain = CpuForm(precision=around)
        return FormChoice(plain, "rule", "; ".join(filter(None, ("rewriting is switched off", note))))
    ruled, why = form_by_rule(cpu_flags())
    ruled = replace(ruled, precision=around)
    key = choice_key(
        ["form", _REWRITING, accuquant.__version__, graph, place, threads, around, *_sizes(model)]
    )
    choice = load_choice(key)
    if choice is None:

        def call_of(one: CpuForm) -> Call:
            return _call(compile_form(one), model)

        choice = choose_form(ruled, why, _traits(model), call_of, release)
        if choice.basis == "measurement":
            keep_choice(key, choice)
    return replace(choice, reason=f"{choice.reason}; {note}") if note else choice


def _named(precision: str) -> FloatPrecision:
    """Return the precision that was asked for; what "auto" may choose is for exported files."""
    return "bf16" if precision == "bf16" else "fp32"


def graph_digest(path: Path) -> str:
    """Return the SHA-256 of a graph: operators, shapes, small constants, and the recipe that it names."""
    skeleton = read_skeleton(path, error=EngineError)
    return hashlib.sha256(skeleton.SerializeToString(deterministic=True)).hexdigest()


def name_of_place(core: Any) -> str:
    """Return what names the processor and the library."""
    name = core.get_property("CPU", "FULL_DEVICE_NAME")
    able = ", ".join(sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")))
    import openvino

    return f"{name} ({able}), OpenVINO {openvino.__version__}"


def _sizes(model: Any) -> list[tuple[int, ...]]:
    return [tuple(port.shape)[1:] for port in model.inputs]


def _traits(model: Any) -> FormTraits:
    from accuquant.runtime.cpu_forms.pointwise_products import find_paired_products
    from accuquant.runtime.cpu_forms.shifted_input import find_shifted_inputs

    shifted = find_shifted_inputs(model)
    return FormTraits(
        shifts=bool(shifted),
        pads=any(one.pad is not None for one in shifted),
        norms=any(node.get_type_name() == "GroupNormalization" for node in model.get_ops()),
        products=bool(find_paired_products(model)),
    )


def _call(request: Any, model: Any) -> Call:
    """Return a call with noise for numbers and zeros for whole numbers: times depend on shapes alone."""
    rng = np.random.default_rng(0)
    feeds = {}
    for index, port in enumerate(model.inputs):
        shape, dtype = tuple(port.shape), np.dtype(port.get_element_type().to_dtype())
        noise = rng.standard_normal(shape, np.float32) if dtype.kind == "f" else np.zeros(shape)
        feeds[index] = noise.astype(dtype)
    return lambda: np.array(request.infer(feeds, share_inputs=True, share_outputs=True)[0], np.float32)
