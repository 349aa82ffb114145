"""What /proc/cpuinfo says of int8."""

from __future__ import annotations

from pathlib import Path

import pytest

from accuquant._util.processor import (
    cpu_flags,
    describe_processor,
    int8_instructions,
    saturates_8_bit_weights,
)


def test_flags_are_those_of_the_first_core(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert cpu_flags(cpuinfo) == {"fpu", "avx2", "avx512_vnni"}
    cpuinfo.write_text("processor\t: 0\nFeatures\t: asimd asimddp\n")
    assert cpu_flags(cpuinfo) == {"asimd", "asimddp"}


def test_an_unknown_processor_has_no_flags(tmp_path: Path) -> None:
    assert cpu_flags(tmp_path / "missing") == set()
    (tmp_path / "empty").write_text("model name: x\n")
    assert cpu_flags(tmp_path / "empty") == set()


@pytest.mark.parametrize(
    ("flags", "names", "saturates"),
    [
        ({"avx2", "avx512_vnni"}, ["AVX512-VNNI"], False),
        ({"avx2", "avx_vnni", "amx_int8"}, ["AMX", "AVX-VNNI"], False),
        ({"avx2", "avx512f"}, [], True),
        ({"asimd", "asimddp"}, ["NEON dot product"], False),
        (set(), [], False),
    ],
)
def test_only_x86_without_vnni_saturates(flags: set[str], names: list[str], saturates: bool) -> None:
    assert int8_instructions(flags) == names
    assert saturates_8_bit_weights(flags) == saturates


@pytest.mark.parametrize(
    ("flags", "described"),
    [
        ("fpu avx2 avx512_vnni", "Some CPU (AVX512-VNNI)"),
        ("fpu avx2", "Some CPU (AVX2 without VNNI)"),
        ("fpu sse2", "Some CPU (no int8 dot product)"),
    ],
)
def test_a_processor_is_described_by_its_name_and_its_int8(
    flags: str, described: str, tmp_path: Path
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"model name\t: Some CPU\nflags\t\t: {flags}\n")
    assert describe_processor(path) == described
