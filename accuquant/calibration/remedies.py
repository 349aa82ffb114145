"""What to change where a calibration does not fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from accuquant.networks.room import Room

from .calibration_settings import CalibrationSettings
from .stage_costs import Need, StageEstimate


def remedies(stages: Sequence[StageEstimate], room: Room, settings: CalibrationSettings) -> tuple[str, ...]:
    """Return sentences that say which stage does not fit and what to give; none where all stages fit."""
    needs = [stage.need for stage in stages]
    if _fit(needs, room):
        return ()
    worst = max(stages, key=lambda stage: _excess(stage.need, room))
    fault = (
        f"Stage '{worst.name}' takes {_excess(worst.need, room) / 1e9:.1f} GB more than there is"
        f"{' on the GPU or in main memory' if room.gpu else ''}."
    )
    batch = _largest(settings.batch_size, needs, room)
    if batch:
        return fault, f"Give --batch-size {batch}."
    return fault, "Give a --device with more memory, or take a smaller network."


def _largest(count: int, needs: Sequence[Need], room: Room) -> int:
    """Return the largest half, quarter ... of a batch of `count` with which all fits."""
    smaller = count // 2
    while smaller:
        share = smaller / count
        if _fit([_shrunk(need, share) for need in needs], room):
            return smaller
        smaller //= 2
    return 0


def _shrunk(need: Need, share: float) -> Need:
    """Return what is needed by a smaller batch."""
    return replace(need, batch=int(need.batch * share), recorded=int(need.recorded * share))


def _fit(needs: Sequence[Need], room: Room) -> bool:
    return all(_excess(need, room) <= 0 for need in needs)


def _excess(need: Need, room: Room) -> int:
    """Return by how many bytes `need` exceeds what there is, the larger one of device and main memory."""
    device, main = need.on(room.gpu)
    if not room.gpu:
        return main - (room.held_main + room.free_main)
    return max(device - (room.held + room.free), main - room.free_main)
