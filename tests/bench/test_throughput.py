"""Images a second against latency: what follows from rates and times that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from accuquant.bench.throughput import Load, Setting, ThroughputReport, powers_of_two, run_throughput
from accuquant.calibration_facts import COPIES, GuidanceFacts
from accuquant.errors import UsageError

#: Two rows an image, 10 steps: a call of one row is half a step.
SINGLE = Load(Setting(1, 1), (20.0, 22.0, 21.0), (50.0, 48.0, 400.0))
PAIR = Load(Setting(1, 2), (24.0,), (80.0,))
MANY = Load(Setting(2, 8), (30.0,), (500.0,))


def report(*loads: Load, rows: int = 2) -> ThroughputReport:
    return ThroughputReport(loads, 10, rows, "a processor", None, 3, 1.0)


def test_images_a_second_are_rows_a_second_over_the_rows_that_an_image_takes() -> None:
    found = report(SINGLE, PAIR, MANY)
    assert found.images_per_second(SINGLE) == 21 / 20
    assert found.images_per_second(MANY) == 1.5
    assert found.best is MANY


def test_an_image_takes_as_long_as_its_calls_whoever_shares_them() -> None:
    found = report(SINGLE, PAIR, MANY)
    assert found.seconds_per_image(SINGLE) == pytest.approx(20 * 0.050)
    assert found.seconds_per_image(PAIR) == pytest.approx(10 * 0.080)
    assert found.seconds_per_image(MANY) == pytest.approx(10 * 0.500)
    assert found.quickest is PAIR


def test_without_guidance_a_row_is_an_image() -> None:
    assert report(SINGLE, PAIR, rows=1).quickest is SINGLE
    assert report(SINGLE, rows=2).quickest is SINGLE


def test_the_json_names_best_and_quickest() -> None:
    data = report(SINGLE, PAIR, MANY).to_dict()
    assert (data["best"], data["quickest"]) == ({"streams": 2, "batch": 8}, {"streams": 1, "batch": 2})
    assert data["results"][0]["call_ms"]["50"] == 50.0
    assert [result["batch"] for result in data["results"]] == [1, 2, 8]


@pytest.mark.parametrize(("most", "expected"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4)), (8, (1, 2, 4, 8))])
def test_streams_are_powers_of_two_up_to_the_threads(most: int, expected: tuple[int, ...]) -> None:
    assert powers_of_two(most) == expected


def test_numbers_below_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--batches: got \[0\], expected numbers of at least 1"):
        run_throughput(tmp_path, batches=(0,))


def test_rows_an_image_are_what_its_guidance_copies() -> None:
    assert [GuidanceFacts(kind).copies for kind in COPIES] == list(COPIES.values())
    assert GuidanceFacts("another").copies == 1
