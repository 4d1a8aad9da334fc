"""What is measured: the model at a size, with random weights and random inputs, and the FLOP of its parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.flop import flop, per_example
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver, MPerceiverConfig
from mperceiver_jax.models.parameters import Params


@dataclass(frozen=True)
class Losses:
    """The choices of the dual branch's loss, as `config.LossConfig` has them."""

    train_cm_inv: bool = True


@dataclass(frozen=True)
class Subject:
    """A model, the size of its images and the dtype of its computation.

    Has the fields of `config.Experiment` that a stage's loss reads, so that it can be built where the
    packages of data and configuration are not installed.
    """

    model: MPerceiverConfig
    size: int
    batch: int
    compute_dtype: str
    losses: Losses = field(default_factory=Losses)
    seed: int = 0
    stages: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % self.model.multiple:
            raise ValueError(f"--size: a multiple of {self.model.multiple} is needed, not {self.size}")
        if self.batch < 1:
            raise ValueError(f"--batch: at least 1, not {self.batch}")

    @property
    def mperceiver(self) -> MPerceiverConfig:
        return self.model

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.compute_dtype)

    @property
    def latent(self) -> tuple[int, int, int]:
        side = self.size // self.model.downscale
        return side, side, self.model.vae.latent_channels


def subject(variant: str, *, size: int = 0, batch: int = 0, dtype: str = "", remat: bool = False) -> Subject:
    """A variant; 0 and "" take what is usual for it (`small`: 48 px, 16, float32; `sd21`: 512 px, 8, bfloat16)."""
    small = variant == "small"
    model = MPerceiverConfig.small() if small else MPerceiverConfig.sd21()
    if remat:
        model = replace(model, unet=replace(model.unet, remat=True), adapter=replace(model.adapter, remat=True))
    return Subject(
        model,
        size or (48 if small else 512),
        batch or (16 if small else 8),
        dtype or ("float32" if small else "bfloat16"),
    )


def random_values(module: Any, dtype: jnp.dtype, seed: int = 0) -> Params:
    """Weights that keep the variance of what they meet, none at zero, in no time at any size: one buffer of
    noise serves them all. Vectors (norms, biases, tokens) are as initially."""
    declared = parameters.declared(module)
    noise = np.random.default_rng(seed).standard_normal(
        max(int(np.prod(leaf.get_value().shape)) for leaf in declared.values()), np.float32
    )
    values = {}
    for path, leaf in declared.items():
        shape = leaf.get_value().shape
        if leaf.kind == "plain":
            value = leaf.init.draw(shape, np.random.default_rng(seed))
        else:
            scale = np.float32(np.prod(shape[:-1]) ** -0.5)
            value = noise[: int(np.prod(shape))].reshape(shape) * scale
        values[path] = jnp.asarray(value, dtype)
    return values


def random_batch(subject: Subject, cached: bool = False) -> dict[str, jax.Array]:
    """A batch as the pipeline gives it; with `cached`, as the cache of the frozen towers does."""
    rng = np.random.default_rng(1)
    b, size, view = subject.batch, subject.size, subject.model.predictor.vision.image_size
    if cached:
        shape = (b, *subject.latent[:2], 2 * subject.latent[2])
        found = {"lq": shape, "gt": shape, "embedding": (b, subject.model.predictor.vision.embed_width)}
        return {name: jnp.asarray(rng.standard_normal(shape, np.float32)) for name, shape in found.items()}
    return {
        "lq": jnp.asarray(rng.random((b, size, size, 3), np.float32)),
        "gt": jnp.asarray(rng.random((b, size, size, 3), np.float32)),
        "lq_clip": jnp.asarray(rng.standard_normal((b, view, view, 3), np.float32)),
        "task": jnp.zeros((b,), jnp.int32),
    }


def part_flop(config: MPerceiverConfig, size: int) -> dict[str, float]:
    """FLOP of each part's forward pass for one image of `size` pixels; `... per batch` is paid once for
    all its images."""
    structure, declared = parameters.split(MPerceiver(config))
    side, channels = size // config.downscale, config.vae.latent_channels
    text, classes = config.text, config.predictor.classes

    def counted(run, *shapes: tuple[int, ...]) -> float:
        inputs = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
        return flop(lambda values, *given: run(parameters.merge(structure, values), *given), declared, *inputs)

    latent, image, t = (1, side, side, channels), (1, size, size, 3), (1,)
    context = (1, text.context_length, text.width)
    maps = [(1, side >> i, side >> i, config.unet.feature_channels) for i in range(config.unet.levels)]
    view = config.predictor.vision.image_size
    unet = counted(lambda m, x, t, c: m.unet(x, t, c), latent, t, context)
    steered = counted(lambda m, x, t, c, *maps: m.unet(x, t, c, maps), latent, t, context, *maps)
    decode = counted(lambda m, z: m.decode(z), latent)
    taps = [(1, size >> i, size >> i, channels) for i, channels in enumerate(config.drm.channels)]
    refinement = counted(lambda m, x, p, *taps: m.drm(x, x, taps, p), image, (1, classes), *taps)
    encode = counted(lambda m, x: m.vae.encode(x).mean, image)
    adapter, prompts = per_example(
        lambda b: counted(lambda m, *x: m.ir_adapter(*x), (b, *latent[1:]), (b,), (b, classes))
    )
    inversion = counted(lambda m, e: m.cm_inv(e), (1, config.cm.embed_width))
    captions, beginning = per_example(
        lambda b: counted(lambda m, *x: m.context(*x), (b, config.cm.embed_width), (b, classes))
    )
    return {
        "unet": unet,
        "modulators": steered - unet,
        "adapter": adapter,
        "adapter prompts, per batch": prompts,
        "text": captions - inversion,
        "text beginning, per batch": beginning,
        "cm_inversion": inversion,
        "vae_encode": encode,
        "vae_decode": decode,
        "drm": refinement,
        "clip": counted(lambda m, x: m.predictor(x), (1, view, view, 3)),
    }
