"""What `accuquant calibrate --dry-run` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accuquant.cli._durations import duration, size
from accuquant.cli._output import print_table
from accuquant.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

    from accuquant.calibration.estimate import Estimate

#: Names that a line gives; --json has all.
_NAMED = 4


def print_estimate(console: Console, estimate: Estimate) -> None:
    """Print layers, stages, memory and what to change."""

    def line(text: str) -> None:
        console.print(printable(text), markup=False)

    line(
        f"{estimate.layers} layers, {estimate.int8_share:.1%} of the layers' multiply-accumulates, in int8, "
        f"on {estimate.device}."
    )
    for reason, names in estimate.left_in_float.items():
        line(f"In float: {_named(names)}; {reason}.")
    for note in estimate.care:
        line(note)
    gpu = estimate.room.gpu
    rows = [
        (
            stage.name,
            str(stage.units),
            str(stage.calls.total),
            duration(stage.seconds),
            *(size(count) for count in stage.need.on(gpu) if gpu or count),
        )
        for stage in estimate.stages
    ]
    memory = ("GPU memory", "memory") if gpu else ("memory",)
    print_table(console, ("stage", "units", "network calls", "time", *memory), rows)
    line(
        f"In all about {duration(estimate.seconds)} and {estimate.calls.total} calls of the network; "
        "learning may end earlier."
    )
    line(f"Disk, until the recipe is written: {size(estimate.disk)}.")
    room = estimate.room
    there = f"{size(room.held_main + room.free_main)} of main memory"
    if gpu:
        there = f"{size(room.held + room.free)} on the GPU and {there}"
    line(f"There is {there}, with what this process holds." if estimate.fits else f"There is only {there}.")
    for remedy in estimate.remedies:
        line(remedy)


def _named(names: tuple[str, ...]) -> str:
    count = "1 layer" if len(names) == 1 else f"{len(names)} layers"
    return f"{count} ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
