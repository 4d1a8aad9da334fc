"""Networks that map a degraded image straight to the restored one, under one way of calling them.

Besides the image a network takes nothing, weights of its classes, or words, depending on its family; `FAMILIES`
is the only place that says so. Training, evaluation and restoring call a `RegressionModel`, whose condition is the
task of each image, given or predicted by its own small classifier.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from mperceiver_jax.models import parameters
from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.restorers.am_promptir import AMPromptIR, AMPromptIRConfig
from mperceiver_jax.models.restorers.condition_weights import weights_of_labels, weights_of_logits
from mperceiver_jax.models.restorers.mioir import prompting
from mperceiver_jax.models.restorers.mioir.prompted_restormer import (
    PromptedPromptIR,
    PromptedPromptIRConfig,
    PromptedRestormer,
    PromptedRestormerConfig,
)
from mperceiver_jax.models.restorers.mioir.prompting import Classifier
from mperceiver_jax.models.restorers.mioir.srresnet import SRResNet, SRResNetConfig
from mperceiver_jax.models.restorers.mioir.swinir import SwinIR, SwinIRConfig
from mperceiver_jax.models.restorers.mioir.uformer import Uformer, UformerConfig
from mperceiver_jax.models.restorers.nafnet import NAFNet, NAFNetConfig
from mperceiver_jax.models.restorers.pip import PIP, PIPConfig
from mperceiver_jax.models.restorers.promptir import PromptIR, PromptIRConfig
from mperceiver_jax.models.restorers.restormer import Restormer, RestormerConfig
from mperceiver_jax.models.restorers.text_prompts import (
    CAPTIONS,
    RELEASE_CLASSES,
    random_text_embeddings,
    rows_of_ids,
)

ConditionSource = Literal["label", "classifier"]
Weights = Float[Array, "b classes"]
Call = Callable[["RegressionModel", Array, Weights | None, Array | None], Array]


@dataclass(frozen=True)
class Family:
    """How the networks of a family are built and called.

    Attributes:
        title: the name, for display.
        config, network: the classes of its sizes and of itself.
        call: (model, images, weights of the tasks or None, key of stochastic depth or None) -> images.
        conditional: whether a network of these sizes takes the degradation of an image as input.
        classes: how many classes such a network distinguishes; None for any number.
        multiple: sides are padded to multiples of this; by reflection is better than what the network does.
        output_layer: regular expression of the parameters of the layer that is added to the image.
        reads_words: whether the degradation is given to the network as text embeddings.
        penalty: regularizer of the network's own parameters.
    """

    title: str
    config: type
    network: Callable[[Any], nnx.Module]
    call: Call
    conditional: Callable[[Any], bool] = lambda sizes: False
    classes: Callable[[Any], int | None] = lambda sizes: None
    multiple: Callable[[Any], int] = lambda network: 1
    output_layer: str = r"(.*\.)?output\.weight"
    reads_words: bool = False
    penalty: Callable[[Any], Float[Array, ""] | float] = lambda network: 0.0


@dataclass(frozen=True)
class RegressionConfig:
    """A restorer by regression.

    Attributes:
        family: one of `FAMILIES`.
        network: sizes of the network, the family's own dataclass.
        tasks: names of the tasks in the order of their labels.
        condition_source: for conditional networks: `label`, given by the caller (an oracle), or
            `classifier`, a small network that is trained at the same time and predicts it (blind).
        words: AM-PromptIR with `text_path` clip only: `.npy` file (tasks, text_width) of the tasks'
            text embeddings, as `python -m mperceiver_jax.convert words` writes it; empty for fixed random ones.
        identity_start: the layer that is added to the image starts at zero, so that an untrained network gives
            images back as they are: our own choice for short trainings. Releases start at random.
    """

    family: str
    network: Any
    tasks: tuple[str, ...]
    condition_source: ConditionSource = "classifier"
    words: str = ""
    identity_start: bool = False

    stages: ClassVar[tuple[str, ...]] = ("regression",)
    main_stage: ClassVar[str] = "regression"
    has_published_weights: ClassVar[bool] = False
    has_sampler: ClassVar[bool] = False
    is_local: ClassVar[bool] = True
    predictor_view: ClassVar[str] = ""
    unused_parameters: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        family = _family(self.family)
        if not isinstance(self.network, family.config):
            raise ValueError(f"network: sizes of {self.family} are a {family.config.__name__}, not {self.network!r}")
        if not self.tasks:
            raise ValueError("tasks: name at least one")
        classes = family.classes(self.network)
        if family.conditional(self.network) and classes not in (None, len(self.tasks)):
            raise ValueError(f"tasks: the network has {classes} classes, but {len(self.tasks)} tasks are named")
        without_words = [task for task in self.tasks if task not in CAPTIONS]
        if family.reads_words and without_words:
            raise ValueError(
                f"tasks: {family.title} has no words for {', '.join(without_words)} (text_prompts.CAPTIONS)"
            )
        if self.words and not family.reads_words:
            readers = ", ".join(one.title for one in FAMILIES.values() if one.reads_words)
            raise ValueError(f"words: only {readers} reads words, {self.family} does not")

    def build(self) -> "RegressionModel":
        """The model, built abstractly."""
        return RegressionModel(self)

    @property
    def classes(self) -> int:
        """Number of tasks."""
        return len(self.tasks)

    @property
    def is_conditional(self) -> bool:
        """Whether the network takes the degradation of an image as input."""
        return _family(self.family).conditional(self.network)

    @property
    def warning(self) -> str:
        """What a user of the model should know; empty where there is nothing."""
        if self.words or not _family(self.family).reads_words or self.network.text_path == "release":
            return ""
        return (
            "The words are fixed random vectors that only distinguish tasks, no CLIP embeddings; `python -m "
            "mperceiver_jax.convert words` makes these, --config.model.words=FILE.npy takes them."
        )

    @property
    def restoration_note(self) -> str:
        """A sentence for reports: how an image was restored, and where its condition came from."""
        source = self.condition_source if self.is_conditional else ""
        blind = "; its own classifier predicts the degradation" if source == "classifier" else ""
        oracle = "; the true degradation was given" if source == "label" else ""
        return f"One pass of the network for each image{blind}{oracle}."

    @property
    def title(self) -> str:
        """The model's name, for display."""
        return _family(self.family).title

    @property
    def checkpoint_metadata(self) -> dict[str, str]:
        """The fields that checkpoints record."""
        return {"family": self.family}

    @classmethod
    def field_types(cls, mapping: Mapping[str, Any]) -> dict[str, type]:
        """Types of fields that hang on others, for reading configurations. ValueError for an unknown family."""
        return {"network": _family(str(mapping.get("family"))).config}


class RegressionModel(nnx.Module):
    """A network and, where it is conditional and the caller gives no condition, a classifier.

    Attributes:
        multiple: sides of images are best padded to multiples of this.
    """

    def __init__(self, config: RegressionConfig):
        family = _family(config.family)
        self.network = family.network(config.network)
        if config.identity_start:
            declared = parameters.declared(self.network)
            output = [path for path in declared if re.fullmatch(family.output_layer, path)]
            if not output:
                raise ValueError(f"identity_start: {config.title} adds no layer to the image")
            parameters.start_at_zero(self.network, output)
        if config.is_conditional and config.condition_source == "classifier":
            self.classifier = Classifier(len(config.tasks))
        self.config = config
        self.multiple = family.multiple(self.network)

    def __call__(
        self, lq: Float[Array, "b h w 3"], weights: Weights | None = None, *, key: Array | None = None
    ) -> Float[Array, "b h w 3"]:
        """Restored images, nominally in [0, 1]; not clipped.

        Args:
            lq: degraded images in [0, 1].
            weights: of the tasks, see `conditions`; networks without a condition ignore them.
            key: for stochastic depth while training.

        Raises:
            ValueError: the network is conditional, and `weights` is None.
        """
        if self.config.is_conditional and weights is None:
            raise ValueError(f"{self.config.title} needs the degradation of an image: give weights of the tasks")
        return _family(self.config.family).call(self, lq, weights, key)

    def logits(self, lq: Float[Array, "b h w 3"]) -> Float[Array, "b tasks"] | None:
        """Logits of the degradations from the classifier; None where there is no classifier."""
        return self.classifier(lq) if hasattr(self, "classifier") else None

    def weights(
        self, logits: Float[Array, "b tasks"] | None, labels: Int[Array, "b"] | None
    ) -> Float[Array, "b tasks"] | None:
        """The condition of the network: the classifier's most probable task, or the labels where it has none."""
        if logits is not None:
            return weights_of_logits(logits, hard=True)
        return None if labels is None else weights_of_labels(labels, len(self.config.tasks))

    def restore(
        self, lq: Float[Array, "b h w 3"], labels: Int[Array, "b"] | None = None
    ) -> tuple[Float[Array, "b h w 3"], Float[Array, "b tasks"] | None]:
        """(restored images, the classifier's logits or None). `labels` are for networks without a classifier."""
        logits = self.logits(lq)
        return self(lq, self.weights(logits, labels)), logits

    def penalty(self) -> Float[Array, ""] | float:
        """The family's regularizer of its own parameters; 0 where it has none."""
        return _family(self.config.family).penalty(self.network)


@lru_cache
def word_vectors(path: str, tasks: tuple[str, ...], width: int) -> Float[np.ndarray, "tasks width"]:
    """Text embeddings of tasks: from a `.npy` file, or fixed random ones that only distinguish tasks.

    Raises:
        FileNotFoundError, ValueError: no such file, or it holds something else.
    """
    if not path:
        return random_text_embeddings(tasks, width)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of text embeddings (.npy, {len(tasks)} x {width})")
    try:
        vectors = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: no .npy file of text embeddings ({error})") from error
    if vectors.shape != (len(tasks), width) or not np.issubdtype(vectors.dtype, np.floating):
        found, expected = f"{vectors.dtype} {vectors.shape}", f"floats ({len(tasks)}, {width})"
        raise ValueError(f"{path}: {found} found, {expected} expected: an embedding per task")
    return vectors.astype(np.float32)


def _text_conditioned(model: RegressionModel, lq: Array, weights: Weights | None, key: Array | None) -> Array:
    assert weights is not None
    config = model.config
    if config.network.text_path == "clip":
        vectors = word_vectors(config.words, config.tasks, config.network.text_width)
        return model.network(lq, weights @ jnp.asarray(vectors))
    # The network computes with token ids as numbers: a mean of two would be a third word.
    return model.network(lq, jnp.asarray(_release_words(config.tasks))[weights.argmax(-1)])


@lru_cache
def _release_words(tasks: tuple[str, ...]) -> np.ndarray:
    """Token ids of the release's class names; of our captions where the release has no such class."""
    named = {"dehaze": "dehazy", "denoise": "denoise_25"}
    words = [named.get(task, task) for task in tasks]
    ids = {word: RELEASE_CLASSES[word] if word in RELEASE_CLASSES else CAPTIONS[word][1] for word in words}
    return rows_of_ids([ids[word] for word in words])


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise ValueError(f"family: {name!r} given, one of {', '.join(FAMILIES)} expected")
    return FAMILIES[name]


def _blind(model: RegressionModel, lq: Array, weights: Weights | None, key: Array | None) -> Array:
    return model.network(lq)


def _of_classes(model: RegressionModel, lq: Array, weights: Weights | None, key: Array | None) -> Array:
    return model.network(lq, weights)


def _with_key(model: RegressionModel, lq: Array, weights: Weights | None, key: Array | None) -> Array:
    return model.network(lq, weights, key=key)


_OUTPUT = r"output\.weight|prompt_shiftout\..*"
_padded = lambda network: network.config.pad_to


def _mioir(backbone: str, config: type, network: Callable[[Any], nnx.Module], output_layer: str) -> Family:
    return Family(
        f"MiOIR ({backbone})",
        config,
        network,
        _with_key,
        conditional=lambda sizes: sizes.prompts == "explicit",
        classes=lambda sizes: len(prompting.TASKS),
        multiple=lambda network: network.multiple,
        output_layer=output_layer,
    )


FAMILIES: dict[str, Family] = {
    "restormer": Family("Restormer", RestormerConfig, Restormer, _blind, multiple=_padded),
    "nafnet": Family(
        "NAFNet",
        NAFNetConfig,
        NAFNet,
        _blind,
        multiple=lambda network: 2 ** len(network.config.encoder),
        output_layer=r"ending\..*",
    ),
    "promptir": Family("PromptIR", PromptIRConfig, PromptIR, _blind, multiple=_padded),
    "am_promptir": Family(
        "AM-PromptIR",
        AMPromptIRConfig,
        AMPromptIR,
        _text_conditioned,
        conditional=lambda sizes: True,
        multiple=_padded,
        reads_words=True,
    ),
    "pip": Family(
        "PIP",
        PIPConfig,
        PIP,
        _of_classes,
        conditional=lambda sizes: True,
        classes=lambda sizes: sizes.classes,
        multiple=lambda network: getattr(network.config.backbone, "pad_to", 2 ** len(network.config.widths)),
        output_layer=r"backbone\.(output\.weight|ending\..*)",
        penalty=lambda network: network.angle_penalty(),
    ),
    "mioir_srresnet": _mioir("SRResNet", SRResNetConfig, SRResNet, r"(conv_last|prompt_shiftout)\..*"),
    "mioir_swinir": _mioir("SwinIR", SwinIRConfig, SwinIR, "(?!)"),
    "mioir_restormer": _mioir("Restormer", PromptedRestormerConfig, PromptedRestormer, _OUTPUT),
    "mioir_uformer": _mioir("Uformer", UformerConfig, Uformer, r"output_proj\..*"),
    "mioir_promptir": _mioir("PromptIR", PromptedPromptIRConfig, PromptedPromptIR, _OUTPUT),
}
"""Name in configurations -> how to build and call it."""
