"""MPerceiver: the assembly, as data flows.

    lq_clip -> predictor -> embedding, logits -> cm_inv, tp, text_encoder -> context
    lq -> vae encoder -> z_lq (-> ir_adapter with t, logits -> features), taps
    noisy latent, t, context, features -> unet -> noise
    latent -> vae decoder -> decoded image
    decoded image, lq, taps, logits -> drm -> restored image

Source: MPerceiver (CVPR 2024, arXiv 2312.02918); the detail refinement module is our own design.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.mperceiver.clip import TextConfig, TextTower
from mperceiver_jax.models.mperceiver.cm_adapter import CMConfig, CMInversion, TokenOrder, text_context
from mperceiver_jax.models.mperceiver.drm import DetailRefinement, DRMConfig
from mperceiver_jax.models.mperceiver.ir_adapter import IRAdapter, IRAdapterConfig
from mperceiver_jax.models.mperceiver.predictor import DegradationPredictor, PredictorConfig
from mperceiver_jax.models.mperceiver.unet import UNet, UNetConfig
from mperceiver_jax.models.mperceiver.vae import AutoencoderKL, VAEConfig, posterior
from mperceiver_jax.models.parameters import normal, parameter

Prediction = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class MPerceiverConfig:
    """Sizes of every part, and the two switches that concern the whole.

    Attributes:
        token_order: learned tokens before the image's (`t_cm`, as in the release) or after (`cm_t`, as in the figure).
        prediction: what the UNet predicts: the noise (`epsilon`, as the release and SD 2.1-base), or the velocity
            (`v_prediction`, as the 768-pixel SD 2.1), which a prior trained from nothing in minutes learns sooner.
    """

    unet: UNetConfig
    vae: VAEConfig
    text: TextConfig
    predictor: PredictorConfig
    adapter: IRAdapterConfig
    cm: CMConfig
    drm: DRMConfig
    token_order: TokenOrder = "t_cm"
    prediction: Prediction = "epsilon"

    title: ClassVar[str] = "MPerceiver"
    warning: ClassVar[str] = ""
    stages: ClassVar[tuple[str, ...]] = ("vae", "prior", "predictor", "dual_branch", "drm")
    main_stage: ClassVar[str] = "dual_branch"
    has_published_weights: ClassVar[bool] = True
    has_sampler: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = ()
    restoration_note: ClassVar[str] = ""

    def __post_init__(self) -> None:
        agreements = {
            "unet.latent_channels and vae.latent_channels": (
                self.unet.latent_channels,
                self.vae.latent_channels,
            ),
            "adapter.latent_channels and vae.latent_channels": (
                self.adapter.latent_channels,
                self.vae.latent_channels,
            ),
            "unet.context_width and text.width": (self.unet.context_width, self.text.width),
            "cm.width and text.width": (self.cm.width, self.text.width),
            "cm.embed_width and predictor.vision.embed_width": (
                self.cm.embed_width,
                self.predictor.vision.embed_width,
            ),
            "unet.feature_channels and adapter.out_channels": (
                self.unet.feature_channels,
                self.adapter.out_channels,
            ),
            "the numbers of levels of unet.channel_mult and adapter.channel_mult": (
                len(self.unet.channel_mult),
                len(self.adapter.channel_mult),
            ),
            "cm.classes and predictor.classes": (self.cm.classes, self.predictor.classes),
            "adapter.classes and predictor.classes": (self.adapter.classes, self.predictor.classes),
            "drm.classes and predictor.classes": (self.drm.classes, self.predictor.classes),
            "drm.channels and vae.tap_channels": (self.drm.channels, self.vae.tap_channels),
        }
        for names, (a, b) in agreements.items():
            if a != b:
                raise ValueError(f"{names} must be equal, not {a} and {b}")
        if self.token_order not in ("t_cm", "cm_t"):
            raise ValueError(f"token_order: 't_cm' or 'cm_t', not {self.token_order!r}")
        if self.prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction: 'epsilon' or 'v_prediction', not {self.prediction!r}")

    @classmethod
    def sd21(cls) -> "MPerceiverConfig":
        """The paper's scale: Stable Diffusion 2.1, OpenCLIP ViT-H/14."""
        return cls(
            unet=UNetConfig.sd21(),
            vae=VAEConfig.sd(),
            text=TextConfig.vit_h_14(),
            predictor=PredictorConfig.release(),
            adapter=IRAdapterConfig.release(),
            cm=CMConfig.release(),
            drm=DRMConfig.sd(),
        )

    @classmethod
    def base(cls) -> "MPerceiverConfig":
        """The model that is shipped: `small` with a larger predictor and refinement, 6.7 M parameters in all."""
        return replace(cls.small(), predictor=PredictorConfig.base(), drm=DRMConfig.base())

    @classmethod
    def small(cls) -> "MPerceiverConfig":
        """Every module, at a size that trains from nothing in minutes on a CPU. Its tenth class is the clean image."""
        return cls(
            unet=UNetConfig.small(),
            vae=VAEConfig.small(),
            text=TextConfig.small(),
            predictor=PredictorConfig.small(),
            adapter=IRAdapterConfig.small(),
            cm=CMConfig.small(),
            drm=DRMConfig.small(),
            prediction="v_prediction",
        )

    def build(self) -> "MPerceiver":
        """The model, built abstractly."""
        return MPerceiver(self)

    @property
    def classes(self) -> int:
        """Number of degradations that the predictor distinguishes."""
        return self.predictor.classes

    @property
    def predictor_view(self) -> str:
        """The view of the image that the predictor receives, as `data.clip_view` names it."""
        return self.predictor.view

    @property
    def unused_parameters(self) -> tuple[str, ...]:
        """The text tower's blocks after the last that is run, its projection and its temperature.

        OpenCLIP's file has them, Stable Diffusion's has not.
        """
        blocks = range(self.text.layers_run, self.text.layers)
        return (
            *(rf"text_encoder\.transformer\.resblocks\.{i}\." for i in blocks),
            r"text_encoder\.text_projection$",
            r"text_encoder\.logit_scale$",
        )

    @property
    def checkpoint_metadata(self) -> dict[str, str]:
        """The fields that checkpoints record."""
        return {"modulator_form": self.unet.modulator_form}

    @property
    def downscale(self) -> int:
        """Pixels of the image per pixel of the latent."""
        return 2 ** (len(self.vae.channel_mult) - 1)

    @property
    def is_local(self) -> bool:
        """Whether no part attends to all positions of an image, so that tiles are restored as the whole image is."""
        return not (self.vae.mid_attention or self.unet.self_attention)

    @property
    def multiple(self) -> int:
        """Sides of an image must be multiples of this many pixels."""
        return math.lcm(self.downscale * 2 ** (len(self.unet.channel_mult) - 1), self.drm.multiple)

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Shape of the latent of a batch of images."""
        b, h, w = image_shape[:3]
        return b, h // self.downscale, w // self.downscale, self.vae.latent_channels


class Condition(NamedTuple):
    """What the low-quality image says, independent of the timestep.

    Attributes:
        z_lq: scaled latent, (b, h, w, latent channels).
        taps: encoder features for the DRM, finest first.
        logits: degradation logits, (b, classes).
        context: text context, (b, 77, width), or what the UNet's `read` made of it.
    """

    z_lq: Array
    taps: tuple[Array, ...]
    logits: Array
    context: Any


class Observation(NamedTuple):
    """What the frozen towers make of a pair of images: all that the dual branch learns from.

    Attributes:
        lq, gt: moments of the autoencoder's posterior, (b, h, w, 2 * latent channels), see `vae.posterior`.
        embedding: of the CLIP view, (b, embed).
    """

    lq: Array
    gt: Array
    embedding: Array


class MPerceiver(nnx.Module):
    """The whole model. Images are NHWC in [-1, 1]; latents are scaled by the autoencoder's factor."""

    def __init__(self, config: MPerceiverConfig):
        self.config = config
        self.unet = UNet(config.unet)
        self.vae = AutoencoderKL(config.vae)
        self.text_encoder = TextTower(config.text)
        self.predictor = DegradationPredictor(config.predictor)
        self.ir_adapter = IRAdapter(config.adapter)
        self.cm_inv = CMInversion(config.cm)
        self.tp = parameter((config.cm.classes, config.cm.tokens, config.cm.width), normal(0.02))
        self.drm = DetailRefinement(config.drm)

    def encode(
        self, image: Float[Array, "b h w 3"], noise: Float[Array, "b hh ww c"] | None = None
    ) -> tuple[Float[Array, "b hh ww c"], tuple[Array, ...]]:
        """(scaled posterior sample, or the mean without noise; encoder taps for the DRM)."""
        found = self.vae.encode(image)
        z = found.mean if noise is None else found.sample(noise)
        return z * self.config.vae.scaling_factor, found.taps

    def observe(
        self, lq: Float[Array, "b h w 3"], gt: Float[Array, "b h w 3"], lq_clip: Float[Array, "b *view 3"]
    ) -> Observation:
        """The frozen part of the dual branch's training, free of chance."""
        low, high = self.vae.encode_pair(lq, gt)
        return Observation(low.moments, high.moments, self.perceive(lq_clip)[0])

    def latent(self, moments: Float[Array, "b h w m"], noise: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Scaled sample of a posterior."""
        return posterior(moments).sample(noise) * self.config.vae.scaling_factor

    def perceive(self, lq_clip: Float[Array, "b *view 3"]) -> tuple[Float[Array, "b embed"], Float[Array, "b classes"]]:
        """(image embedding, degradation logits) of the CLIP view; no gradient passes the embedding."""
        embedding, logits = self.predictor(lq_clip)
        return jax.lax.stop_gradient(embedding), logits

    def context(
        self, embedding: Float[Array, "b embed"], logits: Float[Array, "b classes"]
    ) -> Float[Array, "b n width"]:
        """Text context of the class prompts, mixed by the probabilities of the degradations."""
        cm = self.cm_inv(embedding)
        return text_context(self.text_encoder, self.tp[...], cm, logits, self.config.token_order)

    def condition(
        self,
        lq: Float[Array, "b h w 3"],
        lq_clip: Float[Array, "b *view 3"],
        noise: Float[Array, "b hh ww c"] | None = None,
        logits: Float[Array, "b classes"] | None = None,
    ) -> Condition:
        """Everything the low-quality image contributes, once per image; `logits` take the place of the predicted."""
        z_lq, taps = self.encode(lq, noise)
        embedding, predicted = self.perceive(lq_clip)
        logits = predicted if logits is None else logits
        return Condition(z_lq, taps, logits, self.context(embedding, logits))

    def predict(
        self, x_t: Float[Array, "b h w c"], t: Int[Array, "b"], condition: Condition, prompts=None
    ) -> Float[Array, "b h w c"]:
        """The noise in `x_t` at timestep `t`, or the velocity there: what `config.prediction` says.

        Args:
            prompts: the adapter's prompt keys and values, if at hand.
        """
        features = self.ir_adapter(condition.z_lq, t, condition.logits, prompts)
        return self.unet(x_t, t, condition.context, features)

    def decode(
        self,
        z: Float[Array, "b h w c"],
        lq: Float[Array, "b hh ww 3"] | None = None,
        taps: tuple[Array, ...] | None = None,
        logits: Float[Array, "b classes"] | None = None,
    ) -> Float[Array, "b hh ww 3"]:
        """The image of a scaled latent; not clipped.

        Args:
            lq: the degraded image in [-1, 1]. Where it is given, the detail refinement uses it together with the
                encoder's taps and the degradation logits, which must then be given too.

        Raises:
            ValueError: `lq` without taps or logits.
        """
        if lq is not None and (taps is None or logits is None):
            raise ValueError("decode: the detail refinement needs the encoder's taps and the degradation logits")
        decoded = self.vae.decode(z / self.config.vae.scaling_factor)
        if lq is None or taps is None or logits is None:
            return decoded
        return self.drm(decoded, lq, taps, jax.nn.softmax(logits.astype(jnp.float32)))
