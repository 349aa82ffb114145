"""The command `accuquant push`."""

from __future__ import annotations

from pathlib import Path

import click

from accuquant.cli._command import Command
from accuquant.cli._options import existing_file, existing_folder


@click.command("push", cls=Command)
@click.argument("folder", type=existing_folder, metavar="OUT")
@click.argument("repo_id")
@click.option(
    "--report",
    type=existing_file,
    metavar="JSON",
    help="What `accuquant verify --json` wrote, for the model card.",
)
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--message", default="", help="The commit's message.")
@click.option("--dry-run", is_flag=True, help="Write the model card and upload nothing.")
def command(
    folder: Path, repo_id: str, report: Path | None, private: bool, message: str, dry_run: bool
) -> None:
    """Write a model card into the exported folder OUT and upload it to the Hub as REPO_ID.

    EngineUNet.from_pretrained(REPO_ID) then loads it. Engines and paths of this machine are left out. Log in
    first: `hf auth login`.
    """
    from accuquant.hub.model_card import write_model_card
    from accuquant.hub.publish import check_own, push_folder

    check_own(folder)
    card = write_model_card(folder, report)
    if dry_run:
        click.echo(f"Wrote {card}; nothing was uploaded")
        return
    click.echo(push_folder(folder, repo_id, private=private, message=message))
