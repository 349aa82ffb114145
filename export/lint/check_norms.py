"""The linter's rule about normalizations, which TensorRT computes in float beside the int8 layers."""

from __future__ import annotations

from collections.abc import Iterator

from accuquant.export.lint.check_graph import GraphView, Violation
from accuquant.graph.neighbours import label, select


def one_group_norm(view: GraphView) -> Iterator[Violation]:
    """Report GroupNormalization with one group.

    TensorRT computes it as if each channel were a group of its own (10.16, its issue 4756): another network,
    without a word.
    """
    for node in select(view.graph, "GroupNormalization"):
        if not node.domain and node.attributes.get_int("num_groups", 0) == 1:
            yield Violation(
                "one-group-norm",
                label(node),
                "num_groups is 1, which TensorRT computes channel by channel, expected several groups",
                "Write it out as Reshape -> InstanceNormalization -> Reshape -> Mul -> Add, "
                "as `accuquant export` does",
            )


RULES = (one_group_norm,)
