"""Several images at a time, over all devices: what evaluation needs. The restorer itself takes one."""

from collections.abc import Sequence

import jax
import numpy as np

from mperceiver_jax.distributed import sharding
from mperceiver_jax.image_files import crop_to
from mperceiver_jax.restore.restorer import Restorer


class BatchedRestorer:
    """Restores batches with the restorer's model and settings, divided over a mesh.

    Every image starts from the seed's own noise, as it would alone: results do not depend on what is in
    the batch, beyond the rounding of float32.

    Args:
        restorer: colour fixing and tiles are not supported here.
        mesh: the batch is divided over it, parameters are laid out as in training.
        batch_size: smaller batches are filled up, so that every padded size is compiled once.

    Raises:
        ValueError: the restorer fixes colours, or works in tiles.
    """

    def __init__(self, restorer: Restorer, mesh: jax.sharding.Mesh, batch_size: int = 1):
        if restorer.settings.colour != "none" or restorer.settings.tile:
            raise ValueError("batches are restored without colour fixing and tiles; set colour to 'none' and tile to 0")
        self._restorer, self._mesh = restorer, mesh
        ways = mesh.shape["data"] * mesh.shape["fsdp"]
        self._rows = -(-batch_size // ways) * ways
        self._params = sharding.ParameterLayout(mesh).place_all(restorer.params)
        # The backend's function takes one image and a key; the key is shared.
        spread = jax.vmap(restorer.backend.restore, in_axes=(None, 0, 0, None), spmd_axis_name=("data", "fsdp"))
        self._restore = jax.jit(sharding.traced_over(mesh, spread))

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 (h, w, 3) in [0, 1], of one padded size -> the same, restored."""
        padded = [self._restorer.padded(image)[None] for image in images]
        # One by one: the input of a condition is small, and of the image's own size.
        whole = zip(images, (rows[0] for rows in padded), strict=True)
        conditions = [np.asarray(self._restorer.condition(*pair)) for pair in whole]
        place = sharding.batch_sharding(self._mesh)
        filled = (rows + rows[-1:] * (-len(rows) % self._rows) for rows in (padded, conditions))
        lq, condition = (sharding.place(np.stack(rows), place) for rows in filled)
        out, _ = self._restore(self._params, lq, condition, self._restorer.key)
        restored = np.asarray(out)[:, 0]
        return [crop_to(one, *image.shape[:2]) for one, image in zip(restored, images, strict=False)]
