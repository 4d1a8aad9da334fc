"""From images to batches: shuffle and repeat each source, degrade, crop, mix by task, batch, prefetch.

    for batch in train_batches(PipelineConfig(batch_size=16, crop=128, image_size=128)):
        ...

A batch is a dict of contiguous numpy arrays, `local` being this host's part of the batch:
  lq, gt   float32 (local, crop, crop, 3), RGB in [0, 1]: degraded and clean
  lq_clip  float32 (local, clip_size, clip_size, 3): CLIP-normalised view of the degraded image; with
           clip_view 'native' (local, clip_views, clip_size, clip_size, 3); left out where clip_size is 0
  task     int32 (local,): the label of `tasks.TASKS`

All randomness is grain's generator of an element, which depends on the seed, the task and the element's
number only. The stream is therefore the same whatever the number of threads, workers and hosts, and starting
at batch n is exact.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import grain
import numpy as np
from absl import flags

from data_pipelines import transforms
from data_pipelines.degradations.protocols import protocol_named
from data_pipelines.examples import Batch, Example, MakeExample, as_batch, centre_cut, degrade
from data_pipelines.images import as_float
from data_pipelines.mixture import MIXINGS, TaskMixture, mixture_weights
from data_pipelines.sources.few_shot import Subset, few_pairs
from data_pipelines.sources.folders import ImageFolder, PairedFolders, bundled_photos
from data_pipelines.sources.spec import Source, open_source
from data_pipelines.tasks import TASKS, Task, with_new_tasks


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Everything that decides the batches.

    Attributes:
      batch_size: examples in a global batch, over all hosts.
      crop: side of the square training crop, pixels.
      image_size: side of the square cut from a clean photograph before it is degraded; the CLIP view shows
        all of it. 0 degrades the whole photograph, which is slow and what paired data do.
      image_scales: (least, most) factor by which the cut is larger than image_size before it is reduced to
        it, drawn uniformly; above 1 lets small models see whole scenes. The cut never exceeds the photograph.
      clip_size: side of the CLIP view; 0 makes none, for models that look at nothing but the crop.
      clip_view: 'full' shows CLIP the whole degraded image, 'crop' the training crop, both resized; 'native'
        shows `clip_views` squares of the degraded image at its native resolution.
      clip_views: number of squares of clip_view='native', a square number.
      severities: 'standard' draws the degradations of the tasks as held-out examples do; 'wide' draws them over
        the whole range that people meet (`degradations.wide_range`), in training only.
      flips: 'none', 'horizontal', 'dihedral' or 'dihedral_nonidentity', see `transforms.flip`.
      weights: task name -> weight; tasks not named are left out. Empty: all tasks alike.
      seed: of everything random, at least 0.
      threads: decoding threads of a process; 0 prepares batches when they are asked for.
      prefetch: batches kept ready by the threads.
      workers: further processes; 0 uses threads only (better below about four cores).
      mixing: how tasks share the batches, one of `mixture.MIXINGS`: by `weights`, or by how many images
        (times repeats) their sources have.
      temperature: of mixing='temperature'.
      pairs: task name -> {'lq': folder, 'gt': folder, 'pairing': rule (default 'stem')} or a name as in
        `open_source` (prepared data, TFDS; repeats and sums of them), also as {'source': name}; such a task
        reads its pairs instead of degrading photographs. Clean images from a source are degraded as the
        task does.
      degradations: task name -> name of a published degradation (`degradations.protocols`) that takes the
        place of the task's own.
      new_tasks: names of tasks beyond those known, whose labels follow theirs in this order; each needs an
        entry in `degradations` or `pairs`.
      train_percent: task name -> percent of its pairs that train, chosen once and for all (`few_pairs`); such a
        task degrades fixed cuts of photographs once instead of others every time.
      images: source of clean training photographs, a folder or as in `open_source`; '' takes the bundled ones.
      heldout_images: folder of clean photographs kept from training; '' takes the bundled ones.
      cache_megabytes: decoded images kept in memory, for each source and worker.
    """

    batch_size: int = 16
    crop: int = 256
    image_size: int = 0
    image_scales: tuple[float, float] = (1.0, 1.0)
    clip_size: int = 224
    clip_view: Literal["full", "crop", "native"] = "full"
    clip_views: int = 1
    severities: Literal["standard", "wide"] = "standard"
    flips: str = "horizontal"
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    mixing: str = "weights"
    temperature: float = 1.0
    seed: int = 0
    threads: int = 2
    prefetch: int = 4
    workers: int = 0
    pairs: Mapping[str, Mapping[str, str] | str] = dataclasses.field(default_factory=dict)
    degradations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    new_tasks: tuple[str, ...] = ()
    train_percent: Mapping[str, float] = dataclasses.field(default_factory=dict)
    images: str = ""
    heldout_images: str = ""
    cache_megabytes: float = 300.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "crop"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("image_size", "clip_size", "seed", "threads", "prefetch", "workers", "cache_megabytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative: {getattr(self, name)}")
        if self.image_size and self.crop > self.image_size:
            raise ValueError(f"crop {self.crop} is larger than image_size {self.image_size}")
        if len(self.image_scales) != 2 or not 1 <= self.image_scales[0] <= self.image_scales[1]:
            raise ValueError(f"image_scales must be 1 <= least <= most: {self.image_scales}")
        if self.clip_view not in ("full", "crop", "native"):
            raise ValueError(f"clip_view must be 'full', 'crop' or 'native', not {self.clip_view!r}")
        if self.clip_views < 1 or math.isqrt(self.clip_views) ** 2 != self.clip_views:
            raise ValueError(f"clip_views must be a square number, not {self.clip_views}")
        if self.severities not in ("standard", "wide"):
            raise ValueError(f"severities must be 'standard' or 'wide', not {self.severities!r}")
        if self.flips not in transforms.FLIPS:
            raise ValueError(f"flips must be one of {', '.join(transforms.FLIPS)}, not {self.flips!r}")
        for task, pair in self.pairs.items():
            if isinstance(pair, str):
                continue
            if set(pair) != {"source"} and not {"lq", "gt"} <= set(pair) <= {"lq", "gt", "pairing"}:
                raise ValueError(f"pairs[{task!r}] has {sorted(pair)}; it takes 'source', or 'lq', 'gt' and 'pairing'")
        for task, name in self.degradations.items():
            try:
                protocol_named(name)
            except ValueError as error:
                raise ValueError(f"degradations[{task!r}]: {error}") from None
        for task, percent in self.train_percent.items():
            if not 0 < percent <= 100:
                raise ValueError(f"train_percent[{task!r}] must be above 0 and at most 100, not {percent}")
        for task in self.new_tasks:
            if task not in self.degradations and task not in self.pairs:
                raise ValueError(f"new_tasks: {task!r} needs an entry in degradations or in pairs")
        if self.mixing not in MIXINGS:
            raise ValueError(f"mixing must be one of {', '.join(MIXINGS)}, not {self.mixing!r}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be a positive number, not {self.temperature}")


def train_batches(
    config: PipelineConfig, process_index: int = 0, process_count: int = 1, tasks: Sequence[Task] = TASKS
) -> TrainBatches:
    """This host's part of the endless stream of training batches (see the module for what a batch is).

    Raises:
      FileNotFoundError: a data folder does not exist.
      ValueError: an unknown task, unpaired images, a batch that the hosts cannot share evenly; while
        iterating, an image that cannot be read or a pair of different sizes.
    """
    weights = _task_weights(config, tasks)
    photos: Source | None = None  # one object for all tasks: its cache is shared
    streams = []
    lengths = {}
    for task in weights:
        if task.name in config.pairs:
            source = _paired_source(config, task)
        else:
            source = photos = photos or _image_folder(config)
        if task.name in config.train_percent:
            source, _ = few_pairs(source, config, task)
        seed = int(np.random.SeedSequence([config.seed, task.label]).generate_state(1)[0])
        stream = grain.MapDataset.source(source).seed(seed).shuffle().repeat(None)
        streams.append(stream.random_map(MakeExample(config, task)))
        lengths[task.name] = len(source)
    given = {task.name: weight for task, weight in weights.items()}
    mixed_by = mixture_weights(lengths, config.mixing, config.temperature, given, config.batch_size)
    mixture = TaskMixture(list(mixed_by.values()), config.batch_size, process_index, process_count)
    mixed = grain.MapDataset.select_from_datasets(streams, mixture)
    return TrainBatches(mixed.batch(config.batch_size // process_count, batch_fn=as_batch), config)


def training_pairs(config: PipelineConfig, task: Task) -> Subset:
    """The pairs that train a task of `config.train_percent`. Raises as `train_batches`."""
    source = _paired_source(config, task) if task.name in config.pairs else _image_folder(config)
    return few_pairs(source, config, task)[0]


def _paired_source(config: PipelineConfig, task: Task) -> Source:
    pair = config.pairs[task.name]
    with _field(f"pairs.{task.name}"):
        if isinstance(pair, str):
            return open_source(pair, config.cache_megabytes)
        if "source" in pair:
            return open_source(pair["source"], config.cache_megabytes)
        return PairedFolders(**pair, cache_megabytes=config.cache_megabytes)


def _image_folder(config: PipelineConfig) -> Source:
    if not config.images:
        return ImageFolder(bundled_photos("train"), config.cache_megabytes)
    with _field("images"):
        return open_source(config.images, config.cache_megabytes)


@contextlib.contextmanager
def _field(name: str) -> Iterator[None]:
    """Prefix errors about a source with the configuration field that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


class TrainBatches(grain.DatasetIterator):
    """Endless iterator over batches whose state is the number of the next one.

    The state {'next_batch': n} is the same on every host and for every number of hosts, threads and workers,
    so a run may go on with others. Close it (or use `with`) when done: worker processes hold shared memory.
    """

    def __init__(self, batches: grain.MapDataset, config: PipelineConfig):
        super().__init__()
        self._batches, self._config = batches, config
        self._next_batch = 0
        self._running: grain.DatasetIterator | None = None

    def __next__(self) -> Batch:
        if self._running is None:
            self._running = self._start()
        batch = next(self._running)
        self._next_batch += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"next_batch": self._next_batch}

    def set_state(self, state: dict[str, Any]) -> None:
        self.close()
        self._next_batch = int(state["next_batch"])

    def close(self) -> None:
        """Stops threads and workers; the next access starts them again where the stream stands."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def __enter__(self) -> TrainBatches:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self) -> grain.DatasetIterator:
        config = self._config
        threads = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=config.prefetch)
        dataset = self._batches[self._next_batch :].to_iter_dataset(threads)
        if config.workers:
            if not flags.FLAGS.is_parsed():
                # grain reads its flags to start workers; outside app.run they are not parsed
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.workers))
        return iter(dataset)


class HeldoutExamples(Sequence[Example]):
    """Examples that never change, made from held-out photographs when asked for.

    Element: {'name': photograph and cut, 'task': label, 'lq', 'gt': float32 (side, side, 3) in [0, 1],
    'lq_clip': float32 (clip_size, clip_size, 3)}; side is image_size, or crop where that is 0. Ordered by
    task, and every task has the same photographs. The degradation of example k of a task is drawn from
    (seed, label, k).
    """

    def __init__(self, config: PipelineConfig, per_task: int, seed: int = 0, tasks: Sequence[Task] = TASKS):
        self._config, self._seed = config, seed
        self._tasks = list(_task_weights(config, tasks))
        with _field("heldout_images"):
            self._photos = ImageFolder(config.heldout_images or bundled_photos("heldout"), config.cache_megabytes)
        if not 1 <= per_task <= len(self._photos):
            raise ValueError(f"per_task must be 1 to {len(self._photos)} (held-out images), not {per_task}")
        self._chosen = _spread([path.stem for path in self._photos.files.paths])[:per_task]
        self._unused_pairs = {
            task.name: few_pairs(_paired_source(config, task), config, task)[1]
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


def _task_weights(config: PipelineConfig, tasks: Sequence[Task]) -> dict[Task, float]:
    """The tasks in use, in label order, with their weights."""
    tasks = with_new_tasks(tasks, config.new_tasks, config.degradations)
    by_name = {task.name: task for task in tasks}
    named = {
        "weights": config.weights,
        "pairs": config.pairs,
        "degradations": config.degradations,
        "train_percent": config.train_percent,
    }
    for field, given in named.items():
        unknown = sorted(set(given) - set(by_name))
        if unknown:
            raise ValueError(f"{field}.{unknown[0]}: no task is named so; the tasks are {', '.join(by_name)}")
    weights = config.weights or dict.fromkeys(by_name, 1.0)
    idle = sorted(set(config.pairs) - set(weights))
    if idle:
        raise ValueError(f"pairs.{idle[0]}: given, but weights leaves this task out")
    return {task: float(weights[task.name]) for task in tasks if task.name in weights}


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
