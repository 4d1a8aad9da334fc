"""The tasks and sources that a configuration names; errors name its field."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from data_pipelines.config import PipelineConfig
from data_pipelines.sources.folders import ImageFolder, PairedFolders, bundled_photos
from data_pipelines.sources.spec import Source, open_source
from data_pipelines.tasks import Task, with_new_tasks


def task_weights(config: PipelineConfig, tasks: Sequence[Task]) -> dict[Task, float]:
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


def paired_source(config: PipelineConfig, task: Task) -> Source:
    pair = config.pairs[task.name]
    with named_field(f"pairs.{task.name}"):
        if isinstance(pair, str):
            return open_source(pair, config.cache_megabytes)
        if "source" in pair:
            return open_source(pair["source"], config.cache_megabytes)
        return PairedFolders(**pair, cache_megabytes=config.cache_megabytes)


def image_folder(config: PipelineConfig) -> Source:
    if not config.images:
        return ImageFolder(bundled_photos("train"), config.cache_megabytes)
    with named_field("images"):
        return open_source(config.images, config.cache_megabytes)


@contextlib.contextmanager
def named_field(name: str) -> Iterator[None]:
    """Prefix errors about a source with the configuration field that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
