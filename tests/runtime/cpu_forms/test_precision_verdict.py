from pathlib import Path

import pytest

from accuquant.runtime.cpu_forms.precision_verdict import PrecisionVerdict, choose_precision, keep_verdict

GRAPH = "a" * 64
ABLE = "Some Processor (BF16, FP32, INT8), OpenVINO 1"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACCUQUANT_CACHE", str(tmp_path))
    return tmp_path / "cpu_forms"


@pytest.mark.parametrize(
    ("bf16_db", "bf16_ms", "precision"),
    [(39.6, 20.0, "bf16"), (41.0, 20.0, "bf16"), (39.4, 20.0, "fp32"), (40.0, 26.0, "fp32")],
)
def test_auto_takes_bf16_where_it_is_faster_and_costs_half_a_decibel_at_most(
    bf16_db: float, bf16_ms: float, precision: str
) -> None:
    keep_verdict(GRAPH, ABLE, PrecisionVerdict(40.0, bf16_db, 25.0, bf16_ms))
    chosen, why = choose_precision("auto", GRAPH, ABLE)
    assert chosen == precision
    assert why.startswith(
        f"bf16 around int8: {25 / bf16_ms:.2f} times as fast as fp32, PSNR {bf16_db - 40:+.2f}"
    )


def test_auto_stays_with_fp32_where_nobody_compared() -> None:
    keep_verdict(GRAPH, ABLE, PrecisionVerdict(40.0, 40.0, 25.0, 20.0))
    for graph, place in ((GRAPH, "another (BF16)"), ("b" * 64, ABLE)):
        assert choose_precision("auto", graph, place) == (
            "fp32",
            "`accuquant verify` has not compared bf16 with fp32 around int8 here",
        )
    assert choose_precision("auto", GRAPH, "no such kernels (FP32)")[1] == "this processor has no bfloat16"


def test_what_is_asked_for_is_taken_without_a_word() -> None:
    assert choose_precision("bf16", GRAPH, ABLE) == ("bf16", "")
    assert choose_precision("fp32", GRAPH, ABLE) == ("fp32", "")


@pytest.mark.parametrize("text", ["[", '{"fp32_db": 1, "bf16_db": 1, "fp32_ms": -1, "bf16_ms": 1}'])
def test_a_broken_verdict_is_named_and_not_taken(cache: Path, text: str) -> None:
    keep_verdict(GRAPH, ABLE, PrecisionVerdict(40.0, 40.0, 25.0, 20.0))
    (path,) = cache.iterdir()
    path.write_text(text)
    with pytest.warns(UserWarning, match="is not what was kept there"):
        assert choose_precision("auto", GRAPH, ABLE)[0] == "fp32"
