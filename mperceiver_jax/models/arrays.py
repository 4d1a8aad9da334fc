"""The arrays that models take: of JAX, or of numpy, which JAX converts on use.

In a signature `Float[Array, "b h w c"]` says type and shape; the tests check both at every call
(`tests/conftest.py`). Type checkers see `jax.Array`, whose methods the code relies on.
"""

from typing import TYPE_CHECKING

import jax
import numpy as np

if TYPE_CHECKING:
    Array = jax.Array
else:
    Array = jax.Array | np.ndarray
