"""Options that say where units of work are computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from accuquant.cli._options import Function

if TYPE_CHECKING:
    from accuquant.units.cluster import Cluster


def cluster_options(function: Function) -> Function:
    """Add --workers and --ray-address."""
    for option in (
        click.option(
            "--ray-address",
            metavar="HOST:PORT|auto",
            show_default="no cluster",
            help="Let the workers of a Ray cluster compute: --workers of them, by default one for each GPU, "
            "or each processor core.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            show_default="none: this process computes",
            help="Let so many processes of this machine compute, by Ray: the same result bit for bit.",
        ),
    ):
        function = option(function)
    return function


def take_cluster(options: dict[str, Any]) -> Cluster | None:
    """Take the two out of `options`; None where neither was given."""
    workers, address = options.pop("workers", None), options.pop("ray_address", None)
    if workers is None and address is None:
        return None
    from accuquant.units.cluster import Cluster

    return Cluster(workers, address)
