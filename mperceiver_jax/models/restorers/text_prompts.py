"""Degradations in words, for networks that take a description of the degradation as input.

Words come as tokens of CLIP's vocabulary. The few that are needed are written down, so
that no tokenizer is. `caption_vectors` turns them into vectors by a CLIP text tower.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.mperceiver.clip import TextConfig, TextTower

CAPTIONS: dict[str, tuple[str, tuple[int, ...]]] = {
    "dehaze": ("haze", (22785,)),
    "desnow": ("snow", (2583,)),
    "denoise": ("gaussian noise", (5919, 31218, 9307)),
    "derain": ("rain", (2443,)),
    "deblur": ("blur", (27976,)),
    "deblur_motion": ("motion blur", (7860, 27976)),
    "deblur_defocus": ("defocus blur", (561, 4353, 27976)),
    "denoise_real": ("camera noise", (3934, 9307)),
    "deraindrop": ("raindrops", (3128, 6437)),
    "lowlight": ("low light", (1042, 1395)),
    "dejpeg": ("jpeg artifacts", (73, 11207, 30249)),
    "superresolution": ("low resolution", (1042, 9977)),
}
"""Task -> a caption that names its degradation, and the caption's CLIP tokens."""

RELEASE_CLASSES: dict[str, tuple[int, ...]] = {
    "denoise_15": (1177, 78, 1479, 318, 272, 276),
    "denoise_25": (1177, 78, 1479, 318, 273, 276),
    "denoise_50": (1177, 78, 1479, 318, 276, 271),
    "derain": (839, 2210),
    "dehazy": (561, 32655),
    "dehaze": (561, 22785),
}
"""The class names of AM-PromptIR's release -> their tokens. It trains with `dehazy`."""


def caption_ids(names: Sequence[str], config: TextConfig) -> Int[np.ndarray, "names length"]:
    """Token ids of the captions of tasks: start, caption, end, padding, as `config` has them.

    Raises:
        ValueError: a task without a caption, or a vocabulary that is not CLIP's.
    """
    if config.vocabulary != 49408:
        raise ValueError(f"captions are in CLIP's vocabulary of 49408 tokens, the text tower has {config.vocabulary}")
    captions = _known(names, {name: ids for name, (_, ids) in CAPTIONS.items()}, "caption")
    return _rows(captions, config.context_length, config)


def release_ids(classes: Sequence[str]) -> Int[np.ndarray, "classes 8"]:
    """Token ids of the release's class names: start, name, end, zeros.

    Raises:
        ValueError: no such class.
    """
    return rows_of_ids(_known(classes, RELEASE_CLASSES, "release class"))


def rows_of_ids(words: Sequence[tuple[int, ...]]) -> Int[np.ndarray, "words 8"]:
    """Token ids as the release has them: start, word, end, zeros."""
    longest = max(map(len, RELEASE_CLASSES.values()))
    return _rows(words, longest + 2, TextConfig())


def caption_vectors(tower: TextTower, names: Sequence[str]) -> Float[Array, "names e"]:
    """CLIP's embeddings of the captions of tasks: of unit length, in the space it shares with images.

    Args:
        tower: with its weights and its projection; all its blocks are run.

    Raises:
        ValueError: as `caption_ids`; or the tower has no projection.
    """
    config = tower.config
    if config.projection_width is None:
        raise ValueError("caption_vectors: the text tower has no projection; take one of a whole CLIP model")
    ids = caption_ids(names, config)
    structure, state = nnx.split(tower)
    whole = nnx.merge(structure, state)
    whole.config = replace(config, layers_run=config.layers)
    ends = np.argmax(ids == config.eot_id, -1)
    pooled = whole.encode(jnp.asarray(ids))[np.arange(len(ids)), ends]
    vectors = pooled @ tower.text_projection[...].astype(pooled.dtype)
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def random_text_embeddings(names: Sequence[str], width: int) -> Float[np.ndarray, "names width"]:
    """One fixed random unit vector per task, for training where no CLIP weights are at hand.

    They distinguish tasks and carry no information on their similarity. A vector depends only on its task's name.
    """
    _known(names, {name: ids for name, (_, ids) in CAPTIONS.items()}, "caption")
    drawn = [np.random.default_rng(list(name.encode())).standard_normal(width) for name in names]
    vectors = np.stack([vector / np.linalg.norm(vector) for vector in drawn])
    return vectors.astype(np.float32)


def _known(names: Sequence[str], table: dict[str, tuple[int, ...]], what: str) -> list[tuple[int, ...]]:
    unknown = sorted(set(names) - set(table))
    if unknown:
        raise ValueError(f"no {what} for {', '.join(unknown)}; there are {', '.join(table)}")
    return [table[name] for name in names]


def _rows(words: Sequence[tuple[int, ...]], length: int, config: TextConfig) -> Int[np.ndarray, "n length"]:
    rows = np.full((len(words), length), config.pad_id, np.int32)
    for row, ids in zip(rows, words, strict=True):
        row[: len(ids) + 2] = config.sot_id, *ids, config.eot_id
    return rows
