"""Options that say how a pipeline's folder is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accuquant.cli._options import Function, Source, existing_folder, existing_path

if TYPE_CHECKING:
    from accuquant.calibration_facts import LoadingFacts
    from accuquant.pipelines.loading import Loading

_PLACES = ("network", "pipeline_config")
#: What the options are called that say how a pipeline is read.
LOADING = ("variant", "without", *_PLACES, "allow_pickle", "controlnets", "ip_adapters")


def loading_options(function: Function) -> Function:
    """Add the options named in LOADING; what is left out is as it was calibrated."""
    for option in (
        click.option(
            "--allow-pickle",
            is_flag=True,
            help="Read .ckpt, .pt and .bin files too. They are pickles: tensors and numbers alone are taken, "
            "and no program in them is run.",
        ),
        click.option(
            "--pipeline-config",
            type=existing_folder,
            metavar="FOLDER",
            show_default="told from the file; the configuration then comes from the Hub",
            help="Where SOURCE is a single file of weights: the folder of a pipeline of the same kind, whose "
            "weights are not read.",
        ),
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


def network_option(function: Function) -> Function:
    """Add --network."""
    return click.option(
        "--network",
        type=existing_path,
        metavar="FOLDER|FILE",
        show_default="the pipeline's own",
        help="The network to take instead, such as a fine-tune or a merge: its folder, that of a pipeline, "
        "or a .safetensors file.",
    )(_controlnet_option(function))


def _controlnet_option(function: Function) -> Function:
    function = click.option(
        "--ip-adapter",
        "ip_adapters",
        type=Source(),
        multiple=True,
        metavar="FILE[:SCALE]",
        help="An IP-Adapter to put into the UNet of SOURCE; may be given several times.",
    )(function)
    return click.option(
        "--controlnet",
        "controlnets",
        type=Source(),
        multiple=True,
        metavar="FOLDER|HUB_ID",
        show_default="the pipeline's own",
        help="A control network to put beside the UNet of SOURCE; may be given several times.",
    )(function)


def take_loading(options: dict[str, Any], recorded: LoadingFacts | None = None) -> Loading:
    """Take them out of `options`; what was not chosen is as `recorded` in a recipe."""
    from accuquant.pipelines.loading import Loading

    given = {name: value for name in LOADING if (value := options.pop(name, None))}
    # a recipe that is read elsewhere should name the same place
    places: dict[str, Any] = {name: str(given[name].absolute()) for name in _PLACES if name in given}
    for name in ("controlnets", "ip_adapters"):
        if texts := given.get(name):
            found = [
                str(Path(t).absolute()) if Path(t.rpartition(":")[0] or t).exists() else t for t in texts
            ]
            places[name] = tuple(found)
    loading = Loading(**{**given, **places})
    return loading if recorded is None else loading.or_recorded(recorded)
