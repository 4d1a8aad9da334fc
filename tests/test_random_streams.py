"""Random streams: named, reproducible, and none the same as another."""

import itertools

import jax
import numpy as np

from mperceiver_jax.config.phases import STAGES
from mperceiver_jax.random_streams import Streams

PURPOSES = [
    *(f"stage/{name}{phase}" for name in STAGES for phase in ("", ".1", ".2")),
    *(f"data/{name}{phase}" for name in STAGES for phase in ("", ".1", ".2")),
    "heldout",
    "restore",
]


def bits(key: jax.Array) -> tuple[int, ...]:
    return tuple(int(word) for word in jax.random.key_data(key))


def test_no_two_purposes_seeds_or_steps_share_a_key():
    seeds, indices = (22, 23, 24), (None, 0, 1, 8)
    keys = [bits(Streams(seed).key(name, i)) for seed, name, i in itertools.product(seeds, PURPOSES, indices)]
    assert len(set(keys)) == len(keys) == len(seeds) * len(PURPOSES) * len(indices)


def test_no_two_purposes_share_an_integer_and_all_are_in_range():
    seeds = (0, 23, 24, 2**40)
    integers = [Streams(seed).integer(name) for seed, name in itertools.product(seeds, PURPOSES)]
    assert len(set(integers)) == len(integers)
    assert all(0 <= value < 2**31 for value in integers)


def test_a_stream_is_the_same_every_time_and_its_steps_are_folded_in():
    key = Streams(23).key("stage/vae")
    assert bits(key) == bits(Streams(23).key("stage/vae"))
    assert bits(Streams(23).key("stage/vae", 5)) == bits(jax.random.fold_in(key, 5))
    assert bits(jax.jit(lambda step: Streams(23).key("stage/vae", step))(np.int32(5))) == bits(
        jax.random.fold_in(key, 5)
    )
