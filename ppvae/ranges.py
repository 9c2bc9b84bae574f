"""What a precision can work with: columns at a fit, and rows that come to it later.

Sums of squares, and of their products, must stay in the range of the numbers, so nothing may be further from 1, or from its column's mean
in that column's standard deviations, than the cube root of the largest number.
"""

import torch

from ppvae.data import Data, Summary


def limit(dtype: torch.dtype) -> float:
    """How far from 1 a number may be: 7e12 in float32, 6e102 in float64."""
    return torch.finfo(dtype).max ** (1 / 3)


def check_columns(data: Data, dtype: torch.dtype) -> None:
    """Raise ValueError for columns that a fit in `dtype` cannot work with: those beyond its `limit`, and those where rounding reaches
    8 sqrt(eps) standard deviations, which is a millionth of one in float64 and a 400th in float32."""
    constant = set(data.constant)
    spread = data.variance.sqrt()  # 0 too where the squares of what varies are below float64's range
    scale = torch.where(torch.tensor([c in constant for c in data.columns], device=data.device), 1.0, spread)
    huge = (scale > limit(dtype)) | (scale < 1 / limit(dtype)) | (data.mean.abs() > limit(dtype))
    flat = (data.mean.abs() * torch.finfo(dtype).eps ** 0.5 > 16 * scale) & ~huge
    name, wider = _name(dtype), "" if dtype == torch.float64 else "use dtype='float64', or "
    for bad, remedy in (
        (huge, f"is beyond {name}'s range: {wider}rescale it"),
        (flat, f"varies too little around its mean for {name}: {wider}subtract its mean"),
    ):
        if bad.any():
            raise ValueError(f"column {data.columns[int(bad.nonzero()[0, 0])]} {remedy}")
    _check_context(data, dtype, f"{wider}rescale it")


def check_rows(data: Data, known: Summary, dtype: torch.dtype) -> None:
    """Raise ValueError for rows that a fit in `dtype` cannot read, though it can read those that it was made with: a fill value left in.

    data: with the columns of `known`, in their order.
    """
    low, high = data.x.aminmax(dim=0)
    furthest = torch.maximum(low.abs(), high.abs())  # of a missing entry, which is 0, as near as any
    mean, scale = (furthest.new_tensor(values) for values in (known.mean, known.scale))
    distance = torch.maximum((low - mean).abs(), (high - mean).abs()) / scale
    bad = torch.maximum(furthest, distance) > limit(dtype)
    remedy = (
        "correct it, leave it out as NaN, or fit with dtype='float64'" if dtype != torch.float64 else "correct it, or leave it out as NaN"
    )
    if bad.any():
        place = int(bad.nonzero()[0, 0])
        value = high[place] if high[place] == furthest[place] else low[place]
        raise ValueError(f"column {data.columns[place]} holds {float(value):g}, which is beyond {_name(dtype)}'s range here: {remedy}")
    _check_context(data, dtype, remedy)


def _check_context(data: Data, dtype: torch.dtype, remedy: str) -> None:
    if data.context is not None and data.context.numel() and float(data.context.abs().max()) > limit(dtype):
        raise ValueError(f"the context holds {float(data.context.abs().max()):g}, which is beyond {_name(dtype)}'s range: {remedy}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
