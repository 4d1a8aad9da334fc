"""What the user sets on a restoration: which degradations are removed, how strongly, and where.

given_probabilities   what the model is conditioned on instead of its own prediction
strength_of           how far the result moves from the degraded image to the restored one
blend                 the result of that strength, within a mask
"""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter

from data_pipelines.tasks import TASK_SETS


def check_controls(
    strength: float | Mapping[str, float],
    detail: float,
    degradations: Mapping[str, float],
    only: Collection[str],
    skip: Collection[str],
    feather: float,
) -> None:
    """Raises ValueError naming the setting that is out of range, see `RestoreSettings`."""
    strengths = strength if isinstance(strength, Mapping) else {"": strength}
    for name, value in strengths.items():
        if not 0 <= value <= 1:
            raise ValueError(f"strength: between 0 and 1, not {value}{f' ({name})' * bool(name)}")
    if not 0 <= detail <= 1:
        raise ValueError(f"detail: between 0 and 1, not {detail}")
    if not 0 <= feather < math.inf:
        raise ValueError(f"feather: at least 0 pixels and finite, not {feather}")
    if degradations and not (all(0 <= v < math.inf for v in degradations.values()) and sum(degradations.values()) > 0):
        raise ValueError(f"degradations: at least 0 and finite, one of them above 0, not {dict(degradations)}")
    if only and skip:
        raise ValueError("only, skip: give one of them")
    if degradations and (only or skip):
        raise ValueError("degradations: they say all; leave out only and skip")


def task_named(name: str, known: Sequence[str]) -> str:
    """The task that a name or the title of its degradation stands for: `dehaze` for "haze" and "dehaze".

    Raises:
        ValueError: none of the known tasks is named so; lists them.
    """
    titles = {task.title: task.name for tasks in TASK_SETS.values() for task in tasks}
    task = name if name in known else titles.get(name, name)
    if task not in known:
        raise ValueError(f"no degradation is named {name!r}; this model knows {', '.join(known)}")
    return task


def given_probabilities(
    predicted: Mapping[str, float] | None,
    known: Sequence[str],
    clean: str,
    degradations: Mapping[str, float],
    only: Collection[str],
    skip: Collection[str],
) -> Float[np.ndarray, "1 classes"] | None:
    """Probabilities of the degradations that the model is conditioned on; None leaves its prediction.

    Args:
        predicted: probabilities by task; needed for `only` and `skip`.
        known: the tasks of the model's classes, in order.
        clean: the task of clean images, which takes what is left over; "" where the model has none, and the
            others are scaled to a sum of one.
        degradations, only, skip: see `RestoreSettings`.

    Raises:
        ValueError: a task that the model does not know.
    """
    if degradations:
        chosen = {task_named(name, known): value for name, value in degradations.items()}
    elif only or skip:
        assert predicted is not None
        chosen = {name: predicted[name] for name in kept_tasks(known, only, skip)}
    else:
        return None
    values = np.array([chosen.get(name, 0.0) for name in known], np.float32)
    rest = 1 - values.sum()
    if clean and rest > 0:
        values[known.index(clean)] += rest
    elif not values.any():
        values[:] = 1  # Nothing is to be restored, and the strength is zero; a model needs some condition all the same.
    return values[None] / values.sum()


def kept_tasks(known: Sequence[str], only: Collection[str], skip: Collection[str]) -> list[str]:
    """The tasks that are restored, by `only` or `skip`."""
    if only:
        wanted = {task_named(name, known) for name in only}
        return [name for name in known if name in wanted]
    unwanted = {task_named(name, known) for name in skip}
    return [name for name in known if name not in unwanted]


def strength_of(
    strength: float | Mapping[str, float],
    predicted: Mapping[str, float],
    known: Sequence[str],
    clean: str,
    only: Collection[str],
    skip: Collection[str],
) -> float:
    """How much of the restoration is applied to an image, 0 to 1.

    Where the strength differs between tasks it is their mean, weighted by the probabilities of the degradations;
    tasks that are not restored have none. Clean images keep the full strength: the model leaves them alone.

    Args:
        predicted: the model's own probabilities by task; empty where it has none.
    """
    if not isinstance(strength, Mapping) and not (only or skip):
        return float(strength)
    general = 1.0 if isinstance(strength, Mapping) else float(strength)
    own = {task_named(name, known): value for name, value in strength.items()} if isinstance(strength, Mapping) else {}
    kept = {*kept_tasks(known, only, skip), clean}
    total = sum(predicted.values())
    applied = sum(p * own.get(name, general) for name, p in predicted.items() if name in kept)
    return float(applied / total)


def blend(
    degraded: Float[np.ndarray, "h w 3"],
    restored: Float[np.ndarray, "h w 3"],
    strength: float,
    mask: Float[np.ndarray, "h w"] | None,
    feather: float,
) -> Float[np.ndarray, "h w 3"]:
    """The degraded image moved towards the restored one.

    Args:
        mask: 1 where the image is restored, 0 where it stays; in between, the share.
        feather: standard deviation in pixels of the Gaussian by which the mask is softened.

    Raises:
        ValueError: a mask of another size.
    """
    if strength == 1 and mask is None:
        return restored
    weight: float | np.ndarray = strength
    if mask is not None:
        if mask.shape != degraded.shape[:2]:
            raise ValueError(
                f"the mask is {mask.shape[1]}x{mask.shape[0]} and the image "
                f"{degraded.shape[1]}x{degraded.shape[0]}; both must have one size"
            )
        soft = gaussian_filter(mask.astype(np.float32), feather, mode="nearest") if feather else mask
        weight = (strength * soft)[..., None].astype(np.float32)
    # Where the weight is zero the result is the degraded image to the last bit.
    return degraded + weight * (restored - degraded)
