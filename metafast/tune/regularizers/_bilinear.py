"""Pictures between their pixels."""

from __future__ import annotations

from torch import Tensor


def bilinear(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    r"""Values at real positions, linear between the four pixels around, and 0 outside.

    As `F.grid_sample`, whose gradient has no derivative of its own; this is differentiable as often as needed.

    Args:
        images: `[N, C, H, W]`.
        x: `[N, H', W']`, columns in pixels; 0 is the middle of the first.
        y: `[N, H', W']`, rows.

    Returns:
        `[N, C, H', W']`.

    Source:
        M. Jaderberg et al., Spatial Transformer Networks, NeurIPS 2015, equations 5 to 7.
    """
    n, channels, height, width = images.shape
    flat = images.flatten(2)
    left, top = x.detach().floor(), y.detach().floor()
    result: Tensor | None = None
    for column, wide in ((left, 1 - (x - left)), (left + 1, x - left)):
        for row, high in ((top, 1 - (y - top)), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            found = flat.gather(2, index.flatten(1)[:, None].expand(-1, channels, -1)).view(n, channels, *x.shape[1:])
            part = found * (wide * high * inside).unsqueeze(1)
            result = part if result is None else result + part
    assert result is not None
    return result
