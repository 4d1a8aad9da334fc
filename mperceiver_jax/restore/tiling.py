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
SQUARE = 256
_SQUARES_PER_SIDE = 3


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
    restore: Restore, image: Float[np.ndarray, "h w 3"], tile: int, overlap: int, align: int = 1
) -> Float[np.ndarray, "h w 3"]:
    """The restored image, tile by tile; images no larger than a tile are restored as a whole.

    Args:
        restore: of one tile, its first row and its first column; all tiles of an image have one size.
        image: float32; where both sides are longer than a tile, tiles are square.
        tile: side of the tiles in pixels.
        overlap: pixels that neighbours share at least, at most half a tile; none if a tile is only `align` wide.
        align: tiles begin at multiples of this where the image allows, so that windows and coarser scales of a
            network lie as they do in the whole image; `tile` must be one.

    Raises:
        ValueError: sizes that do not go together.
    """
    check_sizes(tile, overlap, align)
    height, width = image.shape[:2]
    if height <= tile and width <= tile:
        return restore(image, 0, 0)
    rows, columns = (_aligned(length, tile, overlap, align) for length in (height, width))
    of_rows, of_columns = tile_weights(height, tile, rows), tile_weights(width, tile, columns)
    result = np.zeros(image.shape, np.float32)
    for top, down in zip(rows, of_rows, strict=True):
        for left, across in zip(columns, of_columns, strict=True):
            here = np.s_[top : top + len(down), left : left + len(across)]
            weight = np.outer(down, across).astype(np.float32)[..., None]
            result[here] += weight * restore(image[here], top, left)
    return result


def squares_of(image: Float[np.ndarray, "h w 3"], align: int) -> Float[np.ndarray, "n s s 3"]:
    """Nine squares spread evenly over an image, of 256 pixels or its shorter side; they begin at multiples of `align`.
    """
    side = min(SQUARE, *image.shape[:2]) // align * align
    rows, columns = (
        [round(k * (length - side) / (_SQUARES_PER_SIDE - 1)) // align * align for k in range(_SQUARES_PER_SIDE)]
        for length in image.shape[:2]
    )
    return np.stack([image[top : top + side, left : left + side] for top in rows for left in columns])


def _aligned(length: int, tile: int, overlap: int, align: int) -> list[int]:
    """`tile_starts` at multiples of `align`; the last reaches the end of the image all the same."""
    units = tile // align
    starts = tile_starts(-(-length // align), units, min(-(-overlap // align), units - 1))
    return [*(align * start for start in starts[:-1]), max(length - tile, 0)]
