"""One more degradation: a model's parameters with a class added behind those it has.

Five things in MPerceiver know the classes: the predictor's last layer, the textual prompts, the attentions of
the CM inversion, the visual prompts and the DRM's degradation layers. The new class starts as what the model
takes the new images for: the mixture of the old classes by the probabilities predicted on a few of them.
Our own design; the paper adapts to new tasks, but how it does so is not published.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from mperceiver_jax.models.mperceiver.model import MPerceiverConfig
from mperceiver_jax.models.parameters import Params

# Regular expression of the path -> the axis of the classes.
CLASS_AXES = {
    r"predictor\.fc2\.weight$": 1,
    r"predictor\.fc2\.bias$": 0,
    r"tp$": 0,
    r"ir_adapter\.visual_prompt$": 1,
    r"drm\..*\.degradation\.weight$": 0,
}
ATTENTION = r"cm_inv\.attns\.(\d+)\."

# A logit whose probability is zero, in every floating-point type.
MASKED_LOGIT = -1e9


def one_more_class(config: MPerceiverConfig) -> MPerceiverConfig:
    """The configuration of the model with the added class."""
    parts = {name: getattr(config, name) for name in ("predictor", "adapter", "cm", "drm")}
    return replace(config, **{name: replace(part, classes=part.classes + 1) for name, part in parts.items()})


def expand_classes(values: Mapping[str, Any], mixture: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Every parameter of the model with the added class, each asked for when its turn comes.

    Prompts and linear layers of the new class are the mixture of the old ones', so that the DRM does for it
    exactly what it did for the mixture. Attentions do not mix, each has its own meaning of queries and keys: the
    new one is that of the likeliest class. With `never`, the model gives what it gave before.

    Args:
        values: {path: array} of the model as it is.
        mixture: (classes,) probabilities of the old classes.

    Raises:
        ValueError: a mixture that is no distribution over the model's classes.
    """
    mixture = np.asarray(mixture, np.float32)
    classes = values["tp"].shape[0]
    if mixture.shape != (classes,) or mixture.min() < 0 or not np.isclose(mixture.sum(), 1, atol=1e-3):
        raise ValueError(f"mixture: {classes} probabilities that sum to one are needed, not {mixture}")
    likeliest = str(int(mixture.argmax()))
    for path in values:
        value = values[path]
        axis = class_axis(path)
        if axis is not None:
            old = np.asarray(value)
            new = np.tensordot(mixture, np.moveaxis(old.astype(np.float32), axis, 0), 1)
            value = np.concatenate([old, np.expand_dims(new, axis).astype(old.dtype)], axis)
        yield path, value
        attention = re.match(ATTENTION, path)
        if attention and attention[1] == likeliest:
            yield path.replace(f".{likeliest}.", f".{classes}.", 1), value


def class_axis(path: str) -> int | None:
    """The axis of a parameter that counts the classes; None where there is none."""
    return next((axis for pattern, axis in CLASS_AXES.items() if re.match(pattern, path)), None)


def without_last_class(params: Params) -> Params:
    """The parameters with the last class given the probability zero."""
    path = "predictor.fc2.bias"
    return {**params, path: jnp.asarray(params[path]).at[-1].set(MASKED_LOGIT)}
