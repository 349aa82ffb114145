"""Bring a loaded graph into a form, in memory."""

from __future__ import annotations

from typing import Any

from accuquant.graph.vocabulary import VERSION_KEY
from accuquant.runtime.cpu_forms.form import CpuForm


def was_exported(model: Any) -> bool:
    """Say whether AccuQuant wrote the file of an ov.Model; those of others stay as they are."""
    return bool(model.has_rt_info(["framework", VERSION_KEY]))


def rewrite(model: Any, form: CpuForm) -> Any:
    """Return `model`, whose shapes are static, in `form`: a copy that shares its weights, or itself.

    Nothing is written to a disk, and no weight is copied but those of products that become convolutions.
    Raises nothing for what a form does not apply to: that stays as written.
    """
    if form.zero_points == form.norms == form.ranks == form.products == "written":
        return model
    from accuquant.runtime.cpu_forms.channel_norms import write_norms_by_channel
    from accuquant.runtime.cpu_forms.equal_ranks import write_equal_ranks
    from accuquant.runtime.cpu_forms.pointwise_products import write_products_as_convolutions
    from accuquant.runtime.cpu_forms.zero_points import move_zero_points_inside, pad_with_zeros

    rewritten = model.clone()
    if form.zero_points == "inside":
        move_zero_points_inside(rewritten)
    elif form.zero_points == "bordered":
        pad_with_zeros(rewritten)
    if form.products == "convolutions":
        write_products_as_convolutions(rewritten)
    if form.norms == "channels":
        write_norms_by_channel(rewritten)
    if form.ranks == "equal":
        write_equal_ranks(rewritten)
    rewritten.validate_nodes_and_infer_types()
    return rewritten
