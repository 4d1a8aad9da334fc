"""Fixed examples from photographs that no model was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines import transforms
from data_pipelines.config import PipelineConfig
from data_pipelines.examples import Example, centre_cut, degrade
from data_pipelines.images import as_float
from data_pipelines.sources.configured import named_field, paired_source, task_weights
from data_pipelines.sources.few_shot import few_pairs
from data_pipelines.sources.folders import ImageFolder, bundled_photos
from data_pipelines.tasks import TASKS, Task


class HeldoutExamples(Sequence[Example]):
    """Examples that never change, made from held-out photographs when asked for.

    Element: {'name': photograph and cut, 'task': label, 'lq', 'gt': float32 (side, side, 3) in [0, 1],
    'lq_clip': float32 (clip_size, clip_size, 3)}; side is image_size, or crop where that is 0. Ordered by
    task, and every task has the same photographs. The degradation of example k of a task is drawn from
    (seed, label, k).
    """

    def __init__(self, config: PipelineConfig, per_task: int, seed: int = 0, tasks: Sequence[Task] = TASKS):
        self._config, self._seed = config, seed
        self._tasks = list(task_weights(config, tasks))
        with named_field("heldout_images"):
            self._photos = ImageFolder(config.heldout_images or bundled_photos("heldout"), config.cache_megabytes)
        if not 1 <= per_task <= len(self._photos):
            raise ValueError(f"per_task must be 1 to {len(self._photos)} (held-out images), not {per_task}")
        self._chosen = _spread([path.stem for path in self._photos.files.paths])[:per_task]
        self._unused_pairs = {
            task.name: few_pairs(paired_source(config, task), config, task)[1]
            for task in self._tasks
            if task.name in config.train_percent and task.name in config.pairs
        }
        for name, pairs in self._unused_pairs.items():
            if len(pairs) < per_task:
                raise ValueError(
                    f"train_percent[{name!r}] leaves {len(pairs)} pairs that do not train; per_task asks for {per_task}"
                )

    def __len__(self) -> int:
        return len(self._tasks) * len(self._chosen)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        which, k = divmod(index, len(self._chosen))
        task = self._tasks[which]
        if task.name in self._unused_pairs:
            shown = self._unused_pairs[task.name][k]
            side = self._config.image_size or self._config.crop
            lq, gt = (as_float(cut) for cut in transforms.centre_crop((shown["lq"], shown["gt"]), side))
        else:
            shown = self._photos[self._chosen[k]]
            gt = centre_cut(shown["image"], self._config)
            lq = degrade(gt, task, self._config, np.random.default_rng([self._seed, task.label, k]))
        example = {"name": shown["name"], "task": task.label, "lq": lq, "gt": gt}
        if self._config.clip_size:
            example["lq_clip"] = transforms.predictor_view(
                lq, self._config.clip_size, self._config.clip_view, self._config.clip_views
            )
        return example


def heldout_examples(
    config: PipelineConfig, per_task: int, seed: int = 0, tasks: Sequence[Task] = TASKS
) -> HeldoutExamples:
    """A fixed list of examples from held-out photographs, `per_task` for each task of the config.

    They are synthesised, also for tasks that train on pairs: published test sets belong to an evaluation
    protocol. Only a task that trains on a percentage of its pairs shows its others here.

    Raises FileNotFoundError for a missing folder, ValueError for more examples than there are images.
    """
    return HeldoutExamples(config, per_task, seed, tasks)


def _spread(stems: Sequence[str]) -> list[int]:
    """Order of the images that visits every photograph once before any a second time
    (`<photograph>_<k>`)."""
    seen: dict[str, int] = {}
    turns = []
    for index, stem in enumerate(stems):
        photograph = stem.rsplit("_", 1)[0]
        turns.append((seen.get(photograph, 0), index))
        seen[photograph] = seen.get(photograph, 0) + 1
    return [index for _, index in sorted(turns)]
