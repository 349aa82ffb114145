"""Read the roles that a lowering wrote into the nodes of a graph."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from accuquant.errors import SourceError
from accuquant.graph.constants import is_constant
from accuquant.graph.vocabulary import ROLE_KEY, VERSION_KEY, Role


def role_of(node: ir.Node | None) -> Role | None:
    """Return the role of `node`; None where no lowering made it. Raises SourceError for an unknown one."""
    text = None if node is None else node.metadata_props.get(ROLE_KEY)
    if node is None or text is None:
        return None
    try:
        return Role(text)
    except ValueError:
        raise SourceError(
            f"node '{node.name}'",
            got=f"the role {text[:40]!r}",
            expected=f"one of {', '.join(role.value for role in Role)}",
            remedy="The file was exported by a later version of AccuQuant: update, or export it again",
        ) from None


def check_roles(model: ir.Model, path: Path) -> None:
    """Raise SourceError where a graph of ours has pairs without a role: an earlier version wrote it.

    There names said what a node is for, and could have been changed to be unique: what was guessed from
    them would be wrong for a layer that is called twice. Graphs of other tools have no roles and need none.
    """
    if VERSION_KEY not in model.metadata_props:
        return
    for node in model.graph:
        if node.op_type != "QuantizeLinear" or role_of(node) is not None or is_constant(node.inputs[0]):
            continue
        raise SourceError(
            f"'{path}', node '{node.name}'",
            got=f"no role (written by AccuQuant {model.metadata_props[VERSION_KEY]})",
            expected="nodes that say what they are for",
            remedy="Export the model again, with its recipe: it need not be calibrated again",
        )
