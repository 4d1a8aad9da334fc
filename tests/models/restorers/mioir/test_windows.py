"""Windows, their masks and stochastic depth, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax.models.restorers.mioir import windows


def test_partition_goes_row_by_row_and_merge_undoes_it():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    parts = windows.partition(x, 2)
    assert parts.shape == (2, 6, 4, 3)
    np.testing.assert_array_equal(parts[1, 4], x[1, 2:4, 2:4].reshape(4, 3))
    np.testing.assert_array_equal(windows.merge(parts, 4, 6), x)
    with pytest.raises(ValueError, match="windows of 4 pixels do not divide 4 x 6"):
        windows.partition(x, 4)


@pytest.mark.parametrize(("height", "width", "window", "shift"), [(8, 12, 4, 2), (4, 4, 4, 2), (6, 3, 3, 1)])
def test_the_mask_parts_what_the_roll_joins(height, width, window, shift):
    """Two pixels of a shifted window may meet if they are as far apart in the image as in the window."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    places = np.stack([rows, columns], -1)[None]
    placed = np.asarray(windows.partition(windows.roll(jnp.asarray(places), -shift), window))[0]
    inside = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij"), -1).reshape(-1, 2)
    apart = placed[:, :, None] - placed[:, None]
    together = (apart == inside[:, None] - inside[None]).all(-1)
    np.testing.assert_array_equal(windows.shift_mask(height, width, window, shift) == 0, together)


def test_attention_adds_the_table_at_relative_positions_and_the_mask():
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, 2, 4, 6)).astype(np.float32)
    table = rng.standard_normal((9, 2)).astype(np.float32)
    mask = np.where(rng.random((2, 4, 4)) < 0.3, -100, 0).astype(np.float32)
    mask[:, range(4), range(4)] = 0
    found = windows.window_attention(q, k, v, table, mask)
    for window in range(2):
        for head in range(2):
            of = slice(3 * head, 3 * head + 3)
            for query in range(4):
                logits = []
                for key in range(4):
                    row, column = query // 2 - key // 2 + 1, query % 2 - key % 2 + 1
                    bias = table[3 * row + column, head] + mask[window, query, key]
                    logits.append(q[0, window, query, of] @ k[0, window, key, of] / 3**0.5 + bias)
                weights = np.exp(logits) / np.exp(logits).sum()
                np.testing.assert_allclose(found[0, window, query, of], weights @ v[0, window, :, of], atol=1e-5)


def test_stochastic_depth_drops_whole_examples_and_keeps_the_mean():
    branch = np.ones((4000, 2, 3), np.float32)
    found = np.asarray(windows.drop_path(branch, 0.25, jax.random.key(0)))
    per_example = found.reshape(4000, -1)
    assert (per_example == per_example[:, :1]).all()
    assert set(np.unique(found)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(found.mean() - 1) < 0.03
    assert windows.drop_path(branch, 0.25, None) is branch
