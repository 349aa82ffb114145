from __future__ import annotations

import pytest

from accuquant.calibration import CalibrationSettings
from accuquant.calibration.calls import Calls
from accuquant.calibration.remedies import remedies
from accuquant.calibration.stage_costs import Need, StageEstimate
from accuquant.networks.room import Room

SETTINGS = CalibrationSettings(batch_size=8, num_trajectories=64)
GB = 10**9
#: 10 GB, of which this process holds two.
ROOM = Room(False, 2 * GB, 8 * GB, 2 * GB, 8 * GB)


def stage(name: str, **bytes_of: int) -> StageEstimate:
    return StageEstimate(name, 1, Calls(), 1.0, Need(**bytes_of))


@pytest.mark.parametrize(
    ("need", "fault", "remedy"),
    [
        ({"network": 2 * GB, "batch": 17 * GB}, "9.0 GB more than there is", "Give --batch-size 2."),
        ({"network": 2 * GB, "batch": 9 * GB}, "1.0 GB more than there is", "Give --batch-size 4."),
        ({"network": GB, "recorded": 40 * GB}, "31.0 GB more", "Give --batch-size 1."),
        ({"network": 11 * GB}, "1.0 GB more", "a --device with more memory"),
    ],
)
def test_what_does_not_fit_has_a_remedy(need: dict[str, int], fault: str, remedy: str) -> None:
    said = remedies([stage("easy", network=GB), stage("hard", **need)], ROOM, SETTINGS)
    assert said[0].startswith(f"Stage 'hard' takes {fault}")
    assert remedy in said[1]


def test_what_fits_needs_none() -> None:
    assert remedies([stage("s", network=2 * GB, batch=8 * GB)], ROOM, SETTINGS) == ()


def test_a_gpu_holds_the_network_and_main_memory_what_is_recorded() -> None:
    gpu = Room(True, 2 * GB, 8 * GB, GB, 3 * GB)
    assert remedies([stage("s", network=4 * GB, batch=6 * GB, recorded=3 * GB)], gpu, SETTINGS) == ()
    _, remedy = remedies([stage("s", network=4 * GB, recorded=4 * GB)], gpu, SETTINGS)
    assert remedy == "Give --batch-size 4."
    fault, remedy = remedies([stage("s", network=4 * GB, batch=8 * GB)], gpu, SETTINGS)
    assert "on the GPU or in main memory" in fault
    assert remedy == "Give --batch-size 4."
