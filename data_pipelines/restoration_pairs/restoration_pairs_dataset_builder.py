"""The builder; `prepare --format=tfds` runs it. TFDS wants it in a package of the data set's name."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.datasets.records import Record


@dataclasses.dataclass(kw_only=True)
class PairsConfig(tfds.core.BuilderConfig):
    """What to build.

    Attributes:
      name: the user's name for the set, the CONFIG of 'restoration_pairs/CONFIG'.
      records: split -> makes the iterator over its records.
      clean: the set has clean images only.
      home, licence: stored in the data set's metadata.
    """

    records: Mapping[str, Callable[[], Iterator[Record]]] = dataclasses.field(default_factory=dict, repr=False)
    clean: bool = False
    home: str = ""
    licence: str = ""


class Builder(tfds.core.GeneratorBasedBuilder):
    """Features: id, task, height, width, and lq and gt (or image, for clean sets) as encoded images.

    Images are handed on as bytes: nothing is encoded again, and no TensorFlow is needed.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Original bytes, one record for each pair."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        images = ("image",) if self.builder_config.clean else ("lq", "gt")
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.builder_config.description or self.builder_config.name} (data_pipelines.prepare)",
            homepage=self.builder_config.home or None,
            license=self.builder_config.licence or None,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "task": tfds.features.Text(),
                    "height": tfds.features.Scalar(np.int32),
                    "width": tfds.features.Scalar(np.int32),
                    **{name: tfds.features.Image() for name in images},
                }
            ),
            supervised_keys=None if self.builder_config.clean else ("lq", "gt"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        return {split: self._generate_examples(make()) for split, make in self.builder_config.records.items()}

    def _generate_examples(self, records: Iterator[Record]) -> Iterator[tuple[str, dict[str, Any]]]:
        for record in records:
            example: dict[str, Any] = {
                "id": record.id,
                "task": record.task,
                "height": record.height,
                "width": record.width,
            }
            assert record.gt is not None
            if record.lq is None:
                example["image"] = io.BytesIO(record.gt)
            else:
                example |= {"lq": io.BytesIO(record.lq), "gt": io.BytesIO(record.gt)}
            yield record.id, example
