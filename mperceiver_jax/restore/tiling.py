"""Images too large for a device, restored in overlapping tiles that are blended smoothly.

Away from its border a tile holds what the whole image would give there, as far as the network's
receptive field allows. The outer quarter of every overlap is therefore not used at all; across the middle
half the weight passes from one tile to the next as a raised cosine. Means over the image, which group normalisation
takes, come from nine squares of it and are the same for all tiles (`models.shared_statistics`). A network with
attention over all pixels sees every tile for itself.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Restore = Callable[[Float[np.ndarray, "h w 3"], int, int], Float[np.ndarray, "h w 3"]]
# Of the squares from which the tiles of an image take its statistics: sides, their number, and their share of the area.
_SQUARES = (128, 256)
_SQUARES_PER_SIDE = 3
_SQUARES_SHARE = 0.1


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles along one side begin: neighbours share `overlap` pixels at least, none reaches beyond.

    A side that is no longer than a tile has one.
    """
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(k * (length - tile) / (count - 1)) for k in range(count)]


def tile_weights(length: int, tile: int, starts: list[int]) -> Float[np.ndarray, "tiles tile"]:
    """Weight of every pixel of each tile along one side; over the tiles that share a pixel they sum to one."""
    size = min(tile, length)
    weights = np.ones((len(starts), size))
    for k in range(len(starts) - 1):
        shared = starts[k] + size - starts[k + 1]
        # Position in the overlap, 0 to 1 across its middle half.
        where = np.clip(2 * (np.arange(shared) + 0.5) / shared - 0.5, 0, 1)
        rising = 0.5 - 0.5 * np.cos(np.pi * where)
        weights[k, size - shared :] *= 1 - rising
        weights[k + 1, :shared] *= rising
    # Where overlaps are so wide that three tiles share a pixel, the sum of the weights is not one yet.
    total = np.zeros(length)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + size] += weight
    return np.stack([weight / total[start : start + size] for start, weight in zip(starts, weights, strict=True)])


def check_sizes(tile: int, overlap: int, align: int) -> None:
    """Whether tiles of that size can overlap so; arguments as in `restore_in_tiles`.

    Raises:
        ValueError: they cannot; says what would do.
    """
    if tile < 1 or not 0 <= 2 * overlap <= tile or tile % align or (overlap and tile == align):
        raise ValueError(
            f"tile: {tile} pixels with an overlap of {overlap}; a tile is a multiple of {align} here, twice that at "
            "least if tiles overlap, and the overlap at most half of it"
        )


def restore_in_tiles(
    restore: Restore, image: Float[np.ndarray, "h w 3"], tile: int | tuple[int, int], overlap: int, align: int = 1
) -> Float[np.ndarray, "h w 3"]:
    """The restored image, tile by tile; images no larger than a tile are restored as a whole.

    Args:
        restore: of one tile, its first row and its first column; all tiles of an image have one size.
        image: float32.
        tile: height and width of the tiles in pixels, or one number for both.
        overlap: pixels that neighbours share at least, at most half a tile; none if a tile is only `align` wide.
        align: tiles begin at multiples of this where the image allows, so that windows and coarser scales of a
            network lie as they do in the whole image; `tile` must be one.

    Raises:
        ValueError: sizes that do not go together.
    """
    sides = (tile, tile) if isinstance(tile, int) else tile
    height, width = image.shape[:2]
    for side, length in zip(sides, (height, width), strict=True):
        if side < length:
            check_sizes(side, overlap, align)
    if height <= sides[0] and width <= sides[1]:
        return restore(image, 0, 0)
    rows, columns = (
        aligned_starts(length, side, overlap, align) for length, side in zip((height, width), sides, strict=True)
    )
    of_rows, of_columns = tile_weights(height, sides[0], rows), tile_weights(width, sides[1], columns)
    result = np.zeros(image.shape, np.float32)
    for top, down in zip(rows, of_rows, strict=True):
        for left, across in zip(columns, of_columns, strict=True):
            here = np.s_[top : top + len(down), left : left + len(across)]
            weight = np.outer(down, across).astype(np.float32)[..., None]
            result[here] += weight * restore(image[here], top, left)
    return result


def squares_of(image: Float[np.ndarray, "h w 3"], align: int) -> Float[np.ndarray, "n s s 3"]:
    """Nine squares spread evenly over an image, at multiples of `align`: a tenth of its area, of 128 to 256 pixels."""
    height, width = image.shape[:2]
    wanted = (_SQUARES_SHARE * height * width) ** 0.5 / _SQUARES_PER_SIDE
    side = max(align, min(max(round(wanted), _SQUARES[0]), _SQUARES[1], height, width) // align * align)
    rows, columns = (
        [round(k * (length - side) / (_SQUARES_PER_SIDE - 1)) // align * align for k in range(_SQUARES_PER_SIDE)]
        for length in image.shape[:2]
    )
    return np.stack([image[top : top + side, left : left + side] for top in rows for left in columns])


def fitting_tile(length: int, most: int, overlap: int, align: int) -> int:
    """The smallest side, a multiple of `align`, with which no more tiles are needed than with the largest side."""
    count = len(aligned_starts(length, most, overlap, align))
    least = max(-(-(length + (count - 1) * overlap) // count), 2 * overlap)
    tile = -(-least // align) * align
    while tile < most and len(aligned_starts(length, tile, overlap, align)) > count:
        tile += align
    return min(tile, most, length)


def aligned_starts(length: int, tile: int, overlap: int, align: int) -> list[int]:
    """`tile_starts` at multiples of `align`; the last reaches the end of the image all the same."""
    units = tile // align
    starts = tile_starts(-(-length // align), units, min(-(-overlap // align), units - 1))
    return [*(align * start for start in starts[:-1]), max(length - tile, 0)]
