"""JPEG as the differentiable code of published degradations computes it: no file, no entropy coding."""

from __future__ import annotations

import numpy as np
import scipy.fft

# Annex K of ITU-T T.81. The published code divides by the luma table transposed.
_LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
).T
_CHROMA = np.full((8, 8), 99, np.float32)
_CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
# JFIF, full range.
_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)
_TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]], np.float32)
# The two-dimensional transform of a block as one matrix on its 64 pixels: one large product for all blocks.
_DCT = scipy.fft.dct(np.eye(8), norm="ortho", axis=0)
_DCT_2D = np.kron(_DCT, _DCT).astype(np.float32)


def diff_jpeg(image: np.ndarray, quality: float) -> np.ndarray:
    """The image after quantisation in the DCT domain: float32 in [0, 1], not rounded to 8 bits.

    Zero padding to multiples of 16, 4:2:0 by means of 2x2, tables scaled by 50 / q below 50 and by
    (200 - 2 q) / 100 above, not rounded; coefficients rounded half to even; chroma doubled by repetition.

    Args:
      image: float32 (height, width, 3) in [0, 1].
      quality: above 0, up to 100.
    """
    if not 0 < quality <= 100:
        raise ValueError(f"JPEG quality must be in (0, 100], not {quality}")
    factor = np.float32((50 / quality) if quality < 50 else (200 - 2 * quality) / 100)
    height, width, _ = image.shape
    padded = np.pad(image * np.float32(255), ((0, -height % 16), (0, -width % 16), (0, 0)))
    rows, columns = padded.shape[:2]
    planes = (_TO_YCC @ padded.reshape(-1, 3).T).reshape(3, rows, columns)
    chroma = planes[1:].reshape(2, rows // 2, 2, columns // 2, 2).mean(axis=(2, 4)) + np.float32(128)
    luma = _quantised(planes[:1], _LUMA * factor)
    chroma = _quantised(chroma, _CHROMA * factor) - np.float32(128)
    chroma = chroma.repeat(2, axis=1).repeat(2, axis=2)
    planes = (_TO_RGB @ np.concatenate([luma, chroma]).reshape(3, -1)).reshape(3, rows, columns)
    decoded = np.clip(planes[:, :height, :width], 0, 255) / np.float32(255)
    return np.ascontiguousarray(np.moveaxis(decoded, 0, 2))


def _quantised(planes: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(planes, rows, columns) with every 8x8 block to the DCT domain, rounded to multiples of the table, back."""
    if table.min() <= 0:  # quality 100 has a table of zeros: nothing is lost
        return planes
    count, rows, columns = planes.shape
    blocks = planes.reshape(count, rows // 8, 8, columns // 8, 8).swapaxes(2, 3)
    coefficients = (blocks.reshape(-1, 64) - np.float32(128)) @ _DCT_2D.T
    steps = table.ravel()
    coefficients = np.rint(coefficients * (1 / steps)) * steps
    blocks = (coefficients @ _DCT_2D + np.float32(128)).reshape(count, rows // 8, columns // 8, 8, 8)
    return blocks.swapaxes(2, 3).reshape(count, rows, columns)
