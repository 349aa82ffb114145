import pytest

from accuquant.runtime.cpu_forms.form import CpuForm
from accuquant.runtime.cpu_forms.rule import form_by_rule


@pytest.mark.parametrize(
    ("flags", "form"),
    [
        ({"avx2", "avx512_vnni", "amx_int8"}, CpuForm("written", "channels", "equal")),
        ({"avx2", "avx512_vnni"}, CpuForm("inside", "written", "equal")),
        ({"avx2", "avx_vnni"}, CpuForm("inside", "written", "equal")),
        ({"avx2"}, CpuForm("inside", "channels", "equal", products="convolutions")),
    ],
)
def test_amx_never_gets_zero_points_inside_and_vnni_does(flags: set[str], form: CpuForm) -> None:
    assert form_by_rule(flags)[0] == form
    assert form_by_rule(flags)[1]


def test_an_unknown_processor_gets_what_changes_no_bit() -> None:
    assert form_by_rule(set())[0] == CpuForm(ranks="equal")
