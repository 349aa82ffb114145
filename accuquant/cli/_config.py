"""The option --config: a TOML file whose values become a command's defaults."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from accuquant.cli._names import COMMANDS
from accuquant.cli._options import existing_file
from accuquant.errors import AccuQuantError, UsageError


def config_option() -> click.Option:
    """Return the option --config FILE.

    The file has one table for each command, with the names of its options, for example

        [calibrate]
        steps = 50
        group-size = 5
        exclude = ["mid_block.*"]

    What the command line says wins over the file.
    """

    def apply(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
        if path is not None:
            ctx.default_map = read_config(path, ctx.command)

    return click.Option(
        ["--config"],
        type=existing_file,
        is_eager=True,
        expose_value=False,
        callback=apply,
        help="TOML file with defaults for these options, in a table named after the command.",
    )


def read_config(path: Path, command: click.Command) -> dict[str, str | list[str]]:
    """Return the values that the file `path` gives to `command`, by parameter name.

    Values are text, as on the command line, so that click checks both alike. Raises AccuQuantError for a
    file that is not TOML, UsageError for an unknown table, an unknown key and a value of the wrong shape.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as fault:  # syntax, encoding, huge numbers; tables nested very deep
        got = "values nested too deeply" if isinstance(fault, RecursionError) else str(fault)
        raise AccuQuantError(  # the option is right and the file is not: no UsageError
            f"config file '{path}'", got=got, expected="a TOML file", remedy="Correct the file"
        ) from fault
    for name, table in tables.items():
        if name not in COMMANDS or not isinstance(table, dict):
            raise UsageError(
                f"config file '{path}'",
                got=f"'{name}' at its top level",
                expected=f"tables named {', '.join(COMMANDS)}",
                remedy=f"Put the options of this command under [{command.name}]",
            )
    return _values(path, command, tables.get(str(command.name), {}))


def _values(path: Path, command: click.Command, table: Mapping[str, Any]) -> dict[str, str | list[str]]:
    params = {_key(p): p for p in command.params if p.expose_value}
    values: dict[str, str | list[str]] = {}
    for key, value in table.items():
        param = params.get(key.replace("_", "-"))
        if param is None:
            raise UsageError(
                f"config file '{path}'",
                got=f"'{key}' in [{command.name}]",
                expected=f"one of {', '.join(sorted(params))}",
                remedy="Correct the name",
            )
        values[str(param.name)] = _as_typed(path, key, value, getattr(param, "multiple", False))
    return values


def _as_typed(path: Path, key: str, value: Any, multiple: bool) -> str | list[str]:
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, dict | list) for item in items) or (isinstance(value, list) and not multiple):
        raise UsageError(
            f"config file '{path}'",
            got=f"{key} = {value!r}",
            expected="a list of values" if multiple else "one value",
            remedy="Correct the value",
        )
    texts = [str(item) for item in items]
    return texts if multiple else texts[0]


def _key(param: click.Parameter) -> str:
    """Return the name of a parameter in the file: that of its long option, or of the argument."""
    long = [option for option in param.opts if option.startswith("--")]
    return (long[0] if long else str(param.name)).lstrip("-").replace("_", "-").lower()
