"""Which form suits a processor where nothing was measured."""

from __future__ import annotations

from collections.abc import Collection

from accuquant.runtime.cpu_forms.form import CpuForm

#: Feature of a processor, as Linux names it -> its form, and why. The first that it has decides.
RULES: dict[str, tuple[CpuForm, str]] = {
    "amx_int8": (
        CpuForm("written", "channels", "equal"),
        "with AMX zero-points in pairs make convolutions run in float32, and norms by channel were faster",
    ),
    "avx512_vnni": (
        CpuForm("inside", "written", "equal"),
        "with VNNI zero-points inside the pairs were fastest",
    ),
    "avx_vnni": (
        CpuForm("inside", "written", "equal"),
        "with VNNI zero-points inside the pairs were fastest",
    ),
    "avx2": (
        CpuForm("inside", "channels", "equal", products="convolutions"),
        "with AVX2 zero-points inside the pairs, norms by channel and products as convolutions were fastest",
    ),
}
#: Operands of one rank save reorders wherever convolutions are channels-last, and change no bit.
_UNKNOWN = (CpuForm(ranks="equal"), "no other form was measured on such a processor")


def form_by_rule(flags: Collection[str]) -> tuple[CpuForm, str]:
    """Return the form for a processor with these features, and the reason in a clause."""
    return next((rule for feature, rule in RULES.items() if feature in flags), _UNKNOWN)
