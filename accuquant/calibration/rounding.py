"""Round weights so that the errors, theirs and the activations', cancel on the inputs that really occur."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from accuquant.e4m3 import Format
from accuquant.errors import CalibrationError, unknown_name
from accuquant.networks.device import CPU, full_float32
from accuquant.networks.network import weight_of
from accuquant.networks.room import free_memory
from accuquant.qparams import LayerQParams

from .factor import Factor
from .filed_factor import FiledFactor
from .input_moments import Moments
from .row_factor import RowFactor, few_rows
from .row_store import PRECISE_WIDTH, FiledMoments
from .unfolding import as_matrices, from_matrices
from .weight_grid import Grid, grid_of

ROUNDINGS = ("gptq", "nearest", "adaround")
#: What every direction carries at least, as a share of the mean input's variance; see `shrinkage`.
SHRINKAGE = 0.05
#: The widest covariance that is factored as a whole, 1.2 GB of files. Wider inputs fall into blocks.
MAX_WIDTH = 24576
AnyFactor = Factor | FiledFactor | RowFactor
#: Tensors of a weight's size that rounding holds, and what its products take meanwhile.
_COPIES = 6
#: Outputs whose errors are computed at once, in float64.
_OUTPUTS = 256


def check_rounding(name: str) -> None:
    """Raise UsageError, with the valid names, unless `name` is one of ROUNDINGS."""
    if name not in ROUNDINGS:
        raise unknown_name("rounding", name, ROUNDINGS)


@full_float32()
def compensate(
    layer: nn.Module, qparams: LayerQParams, moments: Moments, device: torch.device = CPU
) -> LayerQParams:
    """Return `qparams` with weight levels whose rounding errors cancel, and the bias correction for the rest.

    Minimizes E|(W - W^)(x + n)|^2 over the levels of W^ by GPTQ, where x are the layer's inputs and n is the
    rounding noise of its activations, uniform with variance s^2 / 12 (left out with FP8: it is 0.07 % of the
    inputs' power there, little beside `shrinkage`). What is left of the mean goes into the bias:
    bias_correction [O] = (W - W^) E[x] (Nagel et al., arXiv 1906.04721, section 4.2).

    The covariance is that of the sample plus a share of its mean variance in every direction (`shrinkage`):
    by itself, the sample says that directions which it does not span carry nothing and may take any error.
    The groups of a convolution are products of their own; those of a transposed one share their scales.

    It is computed on `device` where a layer's covariance has room there, in full float32 or float64, else on
    the CPU. Raises CalibrationError where the inputs are not finite.
    """
    weight = as_matrices(layer, weight_of(layer).float())
    device = place_for(device, *weight.shape[1:])
    weight = weight.to(device)
    noise = 0.0
    if qparams.format == "int8":
        noise = float(np.square(qparams.activation_scale, dtype=np.float64).mean()) / 12
    grid = grid_of(qparams.weight_bits, qparams.format)
    scale = torch.from_numpy(qparams.weight_scale).reshape(-1, weight.shape[1]).expand(weight.shape[:2])
    scale, mean = scale.to(device), moments.mean.to(device)
    levels = torch.empty(weight.shape, dtype=torch.int8, device=device)
    for group, _, columns in blocks_of(*weight.shape):
        share = shrinkage(weight.shape[2], moments.distinct)
        factor = _factor(moments, group, columns, share, noise, qparams.name, device)
        for some in _parts(weight.shape[1], factor):
            levels[group, some, columns] = gptq(
                weight[group, some, columns],
                scale[group, some],
                factor,
                qparams.weight_bits,
                qparams.format,
            )
        factor.delete()
        del factor  # before the next one is made
    correction = [_mean_errors(*group, grid) for group in zip(weight, levels, scale, mean, strict=True)]
    return replace(
        qparams,
        weight_levels=from_matrices(layer, levels.cpu()).contiguous().numpy(),
        bias_correction=torch.cat(correction).float().cpu().numpy(),
    )


def place_for(device: torch.device, outputs: int, width: int) -> torch.device:
    """Return where a layer of [outputs, width] is rounded: on `device`, or on the CPU where it has no room.

    Apple's GPUs know no float64, which narrow covariances are in.
    """
    if device.type in ("cpu", "mps"):
        return CPU
    size = 8 if width <= PRECISE_WIDTH else 4
    columns = min(width, MAX_WIDTH)
    free = free_memory(device)
    need = size * columns**2 + _COPIES * size * outputs * columns
    return device if free is None or need <= free else CPU


def shrinkage(width: int, distinct: int) -> float:
    """Return the share of the mean variance that is added to a covariance of `width` inputs.

    It is SHRINKAGE, and more where fewer `distinct` inputs than that were seen.
    """
    return SHRINKAGE * max(1.0, width / distinct)


def rounding_work(layer: nn.Module, rows: int | None) -> tuple[int, float]:
    """Return the columns that `compensate` rounds one by one in a layer, and its products.

    `rows` of it lie in files, None where they are summed. What gathering a covariance takes is not counted.
    A covariance of d inputs is factored with d^3 / 3 products and rounds O outputs with d^2 O / 2. In
    float32, above PRECISE_WIDTH, a product counts as half of one. Few rows n take 2 d n (n + O).
    """
    groups, outputs, inputs = as_matrices(layer, weight_of(layer)).shape
    columns, products = 0, 0.0
    for _, _, some in blocks_of(groups, outputs, inputs):
        width = some.stop - some.start
        columns += width
        if rows is not None and few_rows(rows, width):
            products += 2 * width * rows * (rows + outputs)
            continue
        products += width**2 * (width / 3 + outputs / 2) * (1 if width <= PRECISE_WIDTH else 0.5)
    return columns, products


def blocks_of(groups: int, outputs: int, width: int) -> list[tuple[int, slice, slice]]:
    """Return the parts of matrices [G, O, d] that are rounded by themselves: groups, or blocks of columns."""
    size = math.ceil(width / math.ceil(width / MAX_WIDTH))
    return [
        (group, slice(0, outputs), slice(start, min(start + size, width)))
        for group in range(groups)
        for start in range(0, width, size)
    ]


def _factor(
    moments: Moments,
    group: int,
    columns: slice,
    share: float,
    noise: float,
    name: str,
    device: torch.device,
) -> AnyFactor:
    """Return the factor of the noisy, shrunk covariance of a group's inputs.

    Main memory holds none of more than PRECISE_WIDTH inputs: they lie in files. Few rows need none.
    """
    power, width = 0.0, columns.stop - columns.start
    try:
        if isinstance(moments, FiledMoments) and few_rows(moments.rows, width):
            rows = torch.cat(list(moments.scaled_rows(group, columns))).to(device).double()
            power = float(rows.square().sum(0).mean())
            return RowFactor(rows, share * power + noise)
        if device.type == "cpu" and isinstance(moments, FiledMoments) and width > PRECISE_WIDTH:
            variances = moments.variances(group, columns)
            power = float(variances.mean())
            return FiledFactor.of(
                lambda: moments.scaled_rows(group, columns), variances, share * power + noise, moments.folder
            )
        covariance = moments.covariance(group, columns, device)
        power = float(covariance.diagonal().mean())
        covariance.diagonal().add_(share * power + noise)
        return Factor.of_(covariance)
    except ArithmeticError as error:
        raise CalibrationError(
            f"layer '{name}'",
            got=f"inputs of mean variance {power:g}, whose covariance has no factor",
            expected="finite inputs",
            remedy="Leave the layer in float with --exclude, or correct the weights before it",
        ) from error


def _parts(outputs: int, factor: AnyFactor) -> list[slice]:
    """Return which outputs are rounded at once: all, or some where all of them would take much memory."""
    size = outputs if isinstance(factor, Factor) else _OUTPUTS
    return [slice(start, start + size) for start in range(0, outputs, size)]


def _mean_errors(weight: Tensor, levels: Tensor, scale: Tensor, mean: Tensor, grid: Grid) -> Tensor:
    """Return (W - W^) E[x] [O] in float64 for weight and levels [O, d], scale [O] and mean [d]."""
    parts = [slice(start, start + _OUTPUTS) for start in range(0, len(weight), _OUTPUTS)]
    return torch.cat(
        [
            (weight[o].double() - grid.values(levels[o]).double() * scale[o].double()[:, None]) @ mean
            for o in parts
        ]
    )


def gptq(weight: Tensor, scale: Tensor, factor: AnyFactor, bits: int, levels_of: Format = "int8") -> Tensor:
    """Return int8 levels [O, d] at the scales [O] for `weight` [O, d], given the factor of its inputs.

    Columns are rounded one after the other, those with the most input power first, and each makes up for the
    errors of those before it: GPTQ (Frantar et al., arXiv 2210.17323, algorithm 1). With C = L L^T, columns
    from the last to the first, the errors e cost |e L|^2, and column j can undo what (e L)_j holds of
    earlier ones: q_j = round(w_j + sum_{i > j} e_i L_ij / L_jj). That needs no inverse of C.
    """
    grid = grid_of(bits, levels_of)
    free = weight.T.to(factor.dtype)[factor.order]
    scale = scale.to(free.dtype)
    errors = torch.empty_like(free)
    levels = torch.empty(free.shape, dtype=torch.int8, device=free.device)
    for start, stop, block, earlier in factor.blocks(errors):
        for row in reversed(range(stop - start)):
            at = start + row
            owed = earlier[row] + block[row + 1 :, row] @ errors[at + 1 : stop]
            levels[at] = grid.levels((free[at] + owed / block[row, row]) / scale)
            errors[at] = free[at] - grid.values(levels[at]).to(free.dtype) * scale
    restored = torch.empty_like(levels)
    restored[factor.order] = levels
    return restored.T
