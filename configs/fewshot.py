"""A finished all-in-one run adapted to a task that it has never seen, from a few percent of that task's pairs.

    python -m mperceiver_jax.main --config=configs/fewshot.py:small --config.source=runs/small
        JPEG artefacts, from 5 % of the pairs that the bundled photographs make: a few minutes on two CPU cores.
        The result is a run like any other, in runs/small_jpeg; its report compares the restoration of held-out
        images before (zero-shot) and after (few-shot), for the new task and for the old ones.

    --config.new_task.name=sr4 --config.new_task.degradation=mioir_sr4        four times super-resolution
    --config.new_task.name=holes --config.new_task.degradation=holes          inpainting without a mask
    --config.new_task.name=udc --config.new_task.degradation= --config.new_task.lq=DIR --config.new_task.gt=DIR
        pairs of your own, as two folders or prepared (--config.new_task.pairs=PREPARED:train); those that do
        not train are the held-out ones
    --config.new_task.percent=1           how many of the pairs train
    --config.new_task.train=adapters      all that the stages train, instead of prompts and modulators

The model, its data and all that is not named here are the finished run's. Variants differ in numbers of updates:
`small` for runs of configs/allinone.py:small, `sd21` for those at the paper's scale. The paper reports few-shot
results without saying how it adapts; the recipe is our own.
"""

from ml_collections import ConfigDict

STEPS = {
    "small": {"predictor": 200, "dual_branch": 150, "drm": 200},
    "sd21": {"predictor": 500, "dual_branch": 2000, "drm": 1000},
}
# Gentler than the finished run began: what is there shall be kept. The paper's scale keeps its constant 1e-4.
LEARNING_RATES = {"small": {"predictor": 5e-4, "dual_branch": 5e-4, "drm": 1e-3}, "sd21": {}}


def get_config(variant: str = "small") -> ConfigDict:
    if variant not in STEPS:
        raise ValueError(f"configs/fewshot.py has the variants {' and '.join(STEPS)}, not {variant!r}")
    config = {
        "source": "",
        "new_task": {
            "name": "jpeg",
            "degradation": "mioir_out_jpeg",
            "pairs": "",
            "lq": "",
            "gt": "",
            "percent": 5.0,
            "train": "prompts",
            "rehearsal": 0.75,
        },
        "stages": {
            name: {"steps": steps, "optimizer": _optimizer(LEARNING_RATES[variant].get(name))}
            for name, steps in STEPS[variant].items()
        },
        # Empty ones stand here so that their fields can be set from the command line.
        "losses": {},
        "evaluation": {},
        "data": {},
        "sampler": {},
        "checkpoint": {},
        "mesh": {},
    }
    return ConfigDict(config)


def _optimizer(learning_rate: float | None) -> dict:
    """What differs from the finished run's."""
    if learning_rate is None:
        return {}
    return {"name": "adamw", "learning_rate": learning_rate, "clip_norm": 1.0}
