"""Options that say how a pipeline's folder is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from accuquant.cli._options import Function

if TYPE_CHECKING:
    from accuquant.calibration_facts import LoadingFacts
    from accuquant.pipelines.loading import Loading


def loading_options(function: Function) -> Function:
    """Add --variant and --without; what is left out is as it was calibrated."""
    for option in (
        click.option(
            "--without",
            multiple=True,
            metavar="PART",
            help="A part of the pipeline that is not loaded: text_encoder_3, the T5 of Stable Diffusion 3.",
        ),
        click.option(
            "--variant", metavar="NAME", help="The variant of the pipeline's weight files, such as fp16."
        ),
    ):
        function = option(function)
    return function


def take_loading(options: dict[str, Any], recorded: LoadingFacts | None = None) -> Loading:
    """Take the two out of `options`; what was not chosen is as `recorded` in a recipe."""
    from accuquant.pipelines.loading import Loading

    loading = Loading(options.pop("variant", None) or None, tuple(options.pop("without", ())))
    return loading if recorded is None else loading.or_recorded(recorded)
