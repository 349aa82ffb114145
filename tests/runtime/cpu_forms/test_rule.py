import pytest

from accuquant.runtime.cpu_forms.form import AS_WRITTEN, CpuForm
from accuquant.runtime.cpu_forms.rule import form_by_rule


@pytest.mark.parametrize(
    ("flags", "zero_points"),
    [
        ({"avx2", "avx512_vnni", "amx_int8"}, "bordered"),
        ({"avx2", "avx512_vnni"}, "inside"),
        ({"avx2", "avx_vnni"}, "inside"),
    ],
)
def test_amx_never_gets_zero_points_inside_and_vnni_does(flags: set[str], zero_points: str) -> None:
    form, reason = form_by_rule(flags)
    assert form == CpuForm(zero_points, "channels")  # type: ignore[arg-type]
    assert reason


def test_an_unknown_processor_gets_the_file_as_written() -> None:
    assert form_by_rule(set())[0] == AS_WRITTEN
