"""Independent random streams of one seed, one for each purpose.

Every purpose has a name, such as `stage/dual_branch` or `heldout`. Its stream is derived from the seed and a
checksum of the name, so that no two purposes draw the same numbers and no seed's stream is another seed's.
"""

import zlib
from dataclasses import dataclass

import jax
import numpy as np


@dataclass(frozen=True)
class Streams:
    """The random streams of a seed.

    Attributes:
        seed: at least 0.
    """

    seed: int

    def key(self, name: str, index: int | None = None) -> jax.Array:
        """The JAX key of a purpose or, with `index`, of one step of it.

        Args:
            name: of the purpose.
            index: 0 or above; folded into the key of the purpose.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), _checksum(name))
        return key if index is None else jax.random.fold_in(key, index)

    def integer(self, name: str) -> int:
        """The seed of a purpose for generators that take an integer, 0 to 2**31 - 1."""
        return int(np.random.SeedSequence([self.seed, _checksum(name)]).generate_state(1)[0] >> 1)


def _checksum(name: str) -> int:
    return zlib.crc32(name.encode())
