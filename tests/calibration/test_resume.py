"""A calibration that is cut off anywhere goes on there: the same bytes, and no work done twice."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pointwise import make_pointwise_source
from torch import Tensor, nn

from accuquant._util.progress import Silent
from accuquant.calibration import CalibrationSettings, calibrate, descent_state
from accuquant.errors import CalibrationError
from accuquant.pipelines.source import Source

SETTINGS = CalibrationSettings(
    probe=False, steps=4, group_size=2, num_trajectories=8, batch_size=2, iterations=8, shared_iterations=8,
    sensitivity=True, observer="minmax", activation_bits=4, weight_bits=4, learning_rate=0.02,
)  # fmt: skip
#: Every stage, and how many units of progress each has.
STAGES = {
    "full-precision trajectories": 16,
    "initial scales": 3,
    "refined scales": 8,
    "weight rounding": 3,
    "layer sensitivity": 3,
    "weight scales and biases": 8,
    "step group 1/2": 8,
    "step group 2/2": 8,
}


class Three(nn.Module):
    """Three layers, whose calls are counted over all copies of the network."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.third = nn.Conv2d(4, 1, 1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        Three.calls += 1
        return (self.third(torch.tanh(self.second(torch.tanh(self.first(sample))))),)


class StopError(Exception):
    """What cuts a calibration off."""


class Watch(Silent):
    """Counts what it is told; raises StopError at the `stop`-th thing, or at the n-th unit of a stage."""

    def __init__(self, stop: int = 0, at: tuple[str, int] = ("", 0)) -> None:
        self.stages: dict[str, list[int]] = {}
        self.told = 0
        self._stop, self._at = stop, at
        self._stage = ""

    def stage(self, name: str, total: int) -> None:
        self.stages[name] = [total, 0]
        self._stage = name

    def advance(self, units: int = 1) -> None:
        self.told += 1
        self.stages[self._stage][1] += units
        done = self.stages[self._stage][1]
        if self.told == self._stop or (self._stage == self._at[0] and done >= self._at[1]):
            raise StopError


def source() -> Source:
    return dataclasses.replace(make_pointwise_source(), network=Three().requires_grad_(False).eval())


def run(output: Path, watch: Watch, settings: CalibrationSettings = SETTINGS) -> int:
    """Calibrate until it is done or cut off; return how often the network was called."""
    before = Three.calls
    try:
        calibrate(source(), settings, output=output, progress=watch)
    except StopError:
        assert not output.exists()
    return Three.calls - before


@pytest.fixture(autouse=True)
def at_every_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let descents keep their state at every iteration: these would be over before a minute is."""
    monkeypatch.setattr(descent_state, "EVERY", 0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """Return the recipe of an undisturbed run, and its calls of the network."""
    output, watch = tmp_path_factory.mktemp("whole") / "r.safetensors", Watch()
    calls = run(output, watch)
    assert {name: total for name, (total, _) in watch.stages.items()} == STAGES
    return output.read_bytes(), calls


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "r.safetensors"


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_cut_off_in_any_stage_goes_on_in_it_without_repeating_a_call(
    whole: tuple[bytes, int], output: Path, stage: str
) -> None:
    """One more call counts the layers' work; a batch of trajectories that was not finished is made again."""
    # a judge may end a group's descent from the fourth iteration on, which is no moment to go on from
    done = 7 if stage.startswith("full") else 2 if stage.startswith("step") else STAGES[stage] // 2
    calls = run(output, Watch(at=(stage, done)))
    second = Watch()
    calls += run(output, second)
    assert output.read_bytes() == whole[0]
    assert not output.with_name("r.safetensors.partial").exists()
    begun = list(STAGES).index(stage)
    repeated = 2 if stage.startswith("full") else 0
    assert calls == whole[1] + repeated + (begun <= list(STAGES).index("layer sensitivity"))
    if begun > list(STAGES).index("layer sensitivity"):
        assert next(iter(second.stages)) in (stage, "step group 1/2")
    assert second.stages[stage][1] <= second.stages[stage][0]


def test_a_run_cut_off_again_and_again_ends_with_the_same_bytes(
    whole: tuple[bytes, int], output: Path
) -> None:
    rng = random.Random(5)
    for runs in itertools.count(1):
        run(output, Watch(stop=rng.randint(1, 24)))
        if output.exists():
            break
        assert runs < 100
    assert runs > 3
    assert output.read_bytes() == whole[0]


@pytest.mark.slow
def test_a_run_cut_off_at_any_moment_ends_with_the_same_bytes(
    whole: tuple[bytes, int], tmp_path: Path
) -> None:
    for stop in range(1, sum(STAGES.values()) + 1):
        output = tmp_path / f"{stop}.safetensors"
        run(output, Watch(stop=stop))
        if not output.exists():
            run(output, Watch())
        assert output.read_bytes() == whole[0], stop


def test_what_is_kept_rarely_is_made_again_with_the_same_bytes(
    whole: tuple[bytes, int], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descent_state, "EVERY", 1e9)
    for stage in ("weight scales and biases", "step group 2/2"):
        run(output, Watch(at=(stage, 6)))
    run(output, Watch())
    assert output.read_bytes() == whole[0]


def test_batches_may_be_recorded_in_any_order(whole: tuple[bytes, int], output: Path) -> None:
    run(output, Watch(at=("initial scales", 1)))
    partial = output.with_name("r.safetensors.partial")
    for folder in ("trajectories", "inputs"):
        (partial / folder / "000001.safetensors").unlink()
    again = Watch()
    run(output, again)
    assert again.stages["full-precision trajectories"] == [16, 16]
    assert output.read_bytes() == whole[0]


@pytest.mark.parametrize(
    ("changes", "named"), [({"seed": 1}, "seed: 0 -> 1"), ({"batch_size": 4}, "batch_size: 2 -> 4")]
)
@pytest.mark.parametrize("stage", ["full-precision trajectories", "weight rounding", "step group 1/2"])
def test_units_of_another_run_are_refused_and_left(
    output: Path, stage: str, changes: dict[str, Any], named: str
) -> None:
    run(output, Watch(at=(stage, 7 if stage.startswith("full") else 2)))
    partial = output.with_name("r.safetensors.partial")
    before = {path: path.read_bytes() for path in partial.rglob("*") if path.is_file()}
    with pytest.raises(CalibrationError, match=rf"other settings \({named}\)"):
        run(output, Watch(), dataclasses.replace(SETTINGS, **changes))
    assert {path: path.read_bytes() for path in partial.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "other"), [("torch", "'1.0'"), ("device", "'cuda'"), ("version", "'0.0.1'")]
)
def test_units_of_another_device_torch_or_release_are_refused(output: Path, name: str, other: str) -> None:
    run(output, Watch(at=("weight rounding", 2)))
    marker = output.with_name("r.safetensors.partial") / "settings.json"
    lines = [line for line in marker.read_text().splitlines() if f'"{name}":' not in line]
    lines.insert(1, f'"{name}": {other},'.replace("'", '"'))
    marker.write_text("\n".join(lines))
    with pytest.raises(CalibrationError, match=rf"other settings \({name}: {other} -> "):
        run(output, Watch())


def test_a_full_disk_costs_one_unit_and_says_which_file(
    whole: tuple[bytes, int], output: Path, small_disk: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a batch do not fit any more; then there is room again."""
    monkeypatch.setattr("accuquant.calibration.input_moments.MEMORY", 0)
    reference = output.with_name("reference.safetensors")
    run(reference, Watch())
    run(output, Watch(at=("full-precision trajectories", 9)))
    small_disk(8_000)
    with pytest.raises(OSError, match=r"File too large: '.*partial.inputs.000002.rows'"):
        run(output, Watch())
    small_disk(2**30)
    partial = output.with_name("r.safetensors.partial")
    assert [path.name for path in sorted((partial / "trajectories").iterdir())] == [
        "000000.safetensors", "000001.safetensors",
    ]  # fmt: skip
    again = Watch()
    run(output, again)
    assert output.read_bytes() == reference.read_bytes()


class Held(Watch):
    """Measures how many bytes of tensors are alive, whenever it is told something."""

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[str, int] = {}
        self._calls = 0

    def advance(self, units: int = 1) -> None:
        super().advance(units)
        self._calls += 1
        if self._calls & (self._calls - 1) == 0:  # ever less often: a look at all objects takes its time
            gc.collect()
            self.peaks[self._stage] = max(self.peaks.get(self._stage, 0), sum(sizes()))

    def stage(self, name: str, total: int) -> None:
        self._calls = 0
        super().stage(name, total)


def sizes() -> Iterator[int]:
    """Yield the bytes of every storage that a tensor holds now."""
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    yield from storages.values()


@pytest.fixture
def few_objects() -> Iterator[None]:
    """Let gc know of objects that are made in the test alone: there are a million others."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("few_objects")
def test_what_is_held_in_memory_does_not_grow_with_the_number_of_trajectories(tmp_path: Path) -> None:
    peaks: list[dict[str, int]] = []
    for count in (8, 8, 40):
        watch = Held()
        settings = dataclasses.replace(SETTINGS, num_trajectories=count, iterations=2, shared_iterations=2)
        run(tmp_path / f"{count}-{len(peaks)}.safetensors", watch, settings)
        gc.collect()
        peaks.append(watch.peaks)
    for stage in peaks[1]:
        # the errors of held-out trajectories are a number each; more batches give each layer fewer rows a
        # call, which are then kept in other ways; one latent of each of 32 trajectories is 24,576 bytes
        assert peaks[2][stage] <= peaks[1][stage] + 4000, stage
