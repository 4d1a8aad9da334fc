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

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from data_pipelines.config import PipelineConfig
from data_pipelines.examples import Batch, MakeExample, as_batch
from data_pipelines.mixture import TaskMixture, mixture_weights
from data_pipelines.sources.configured import image_folder, paired_source, task_weights
from data_pipelines.sources.few_shot import Subset, few_pairs
from data_pipelines.sources.spec import Source
from data_pipelines.tasks import TASKS, Task


def train_batches(
    config: PipelineConfig, process_index: int = 0, process_count: int = 1, tasks: Sequence[Task] = TASKS
) -> TrainBatches:
    """This host's part of the endless stream of training batches (see the module for what a batch is).

    Raises:
      FileNotFoundError: a data folder does not exist.
      ValueError: an unknown task, unpaired images, a batch that the hosts cannot share evenly; while
        iterating, an image that cannot be read or a pair of different sizes.
    """
    weights = task_weights(config, tasks)
    photos: Source | None = None  # one object for all tasks: its cache is shared
    streams = []
    lengths = {}
    for task in weights:
        if task.name in config.pairs:
            source = paired_source(config, task)
        else:
            source = photos = photos or image_folder(config)
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
    source = paired_source(config, task) if task.name in config.pairs else image_folder(config)
    return few_pairs(source, config, task)[0]


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
