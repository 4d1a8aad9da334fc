"""Which task fills which place of which batch: exact proportions on any number of hosts.

Grain's own mixing is one long interleaving that knows no batches; cut into batches, and those into hosts, it
leaves tasks over- and under-represented in step with the cut (a host may see one task for ever). Here the
global batch is the unit:

- Every global batch holds, for each task, floor or ceil of batch_size x weight examples, and any `cycle`
  batches in a row from a multiple of `cycle` hold the weights exactly. This is systematic sampling: the
  cumulative shares of a batch are rounded down after adding an offset that runs evenly through [0, 1) over
  the cycle.
- Within a batch the tasks are spread evenly, and the places are rotated from batch to batch so that over
  cycle x batch_size batches every place, hence every host, gets every task in exactly its weight.
- Hosts take consecutive blocks of the same global batch, so the batches do not depend on how many hosts
  there are: the number of hosts may change between runs, and one stream of examples is continued.
- Places of a task are numbered without gaps; host h's numbers in an epoch of a source are its shard of that
  source's shuffled order, and the shards of all hosts are disjoint and complete in every epoch.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal, get_args

import grain
import numpy as np

# 'weights': as given. 'proportional': by examples, which is what concatenating and shuffling lists does.
# 'temperature': by examples to the power 1/T. 'one_per_task': every batch has equally many of each task.
Mixing = Literal["weights", "proportional", "temperature", "one_per_task"]
MIXINGS = get_args(Mixing)

_FINEST = 1000  # weights are kept to about a thousandth, which bounds the cycle and the tables


class TaskMixture(grain.transforms.DatasetSelectionMap):
    """Maps the position in a host's stream to (task, number within the task's infinite dataset).

    Args:
      weights: one positive number for each task, in any scale; kept exactly where they are simple fractions
        of their sum, to a thousandth otherwise.
      batch_size: examples in a global batch.
      process_index, process_count: which host this is, of how many; batch_size must be divisible by the
        count.
    """

    def __init__(self, weights: Sequence[float], batch_size: int, process_index: int = 0, process_count: int = 1):
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index {process_index} is not below process_count {process_count}")
        if batch_size < 1 or batch_size % process_count:
            raise ValueError(f"batch_size {batch_size} cannot be divided among {process_count} hosts")
        self.shares = exact_shares(weights)
        self._batch, self._local = batch_size, batch_size // process_count
        self._first, self._processes = process_index * self._local, process_count

        edges = [Fraction(0), *itertools.accumulate(share * batch_size for share in self.shares)]
        self.cycle = math.lcm(*(edge.denominator for edge in edges))
        # Exact integers: edge * cycle is whole, so floor(edge + r / cycle) is an integer division.
        scaled = np.array([int(edge * self.cycle) for edge in edges], np.int64)
        offset = np.arange(self.cycle) * _stride(self.cycle) % self.cycle
        rounded = (scaled[None, :] + offset[:, None]) // self.cycle
        counts = np.diff(rounded, axis=1)
        self._per_cycle = counts.sum(axis=0)
        self._before = np.cumsum(counts, axis=0) - counts
        self._task = np.empty((self.cycle, batch_size), np.int32)
        self._rank = np.empty((self.cycle, batch_size), np.int32)
        for r, count in enumerate(counts):
            task = np.repeat(np.arange(len(count)), count)
            rank = np.concatenate([np.arange(c) for c in count])
            spread = np.lexsort((task, (rank + 0.5) / count[task]))
            self._task[r], self._rank[r] = task[spread], rank[spread]

    def __len__(self) -> int:
        return sys.maxsize // self._processes  # without end

    def __getitem__(self, index: int) -> tuple[int, int]:
        batch, place = divmod(index, self._local)
        cycles, r = divmod(batch, self.cycle)
        place = (self._first + place + cycles + r) % self._batch
        task = int(self._task[r, place])
        number = cycles * int(self._per_cycle[task]) + int(self._before[r, task]) + int(self._rank[r, place])
        return task, number


def mixture_weights(
    lengths: Mapping[str, int],
    mixing: str,
    temperature: float = 1.0,
    weights: Mapping[str, float] | None = None,
    batch_size: int | None = None,
) -> dict[str, float]:
    """How often each task comes, up to a common factor.

    Args:
      lengths: task -> examples in an epoch of it, repeats included.
      mixing: one of `MIXINGS`.
      temperature: of 'temperature' sampling: 1 is proportional, large is equal.
      weights: task -> factor on top, 1 where not given; all of it for 'weights', nothing for 'one_per_task'.
      batch_size: checked against the number of tasks for 'one_per_task'.

    Raises ValueError for an unknown mixing, a temperature that is not positive, or a batch that the tasks
    cannot share.
    """
    factor = lambda task: (weights or {}).get(task, 1.0)
    if mixing == "weights":
        return {task: factor(task) for task in lengths}
    if mixing == "one_per_task":
        if batch_size is not None and batch_size % len(lengths):
            raise ValueError(f"batch_size {batch_size} is no multiple of the {len(lengths)} tasks")
        return dict.fromkeys(lengths, 1.0)
    if mixing not in MIXINGS:
        raise ValueError(f"mixing must be one of {', '.join(MIXINGS)}, not {mixing!r}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a positive number, not {temperature}")
    power = 1 / temperature if mixing == "temperature" else 1.0
    try:
        return {task: factor(task) * length**power for task, length in lengths.items()}
    except OverflowError:
        raise ValueError(f"temperature {temperature} is too low: the largest task would fill every batch") from None


def exact_shares(weights: Sequence[float]) -> list[Fraction]:
    """Weights as fractions that sum to one, with a common denominator of at most a thousand.

    Raises ValueError for no weights, or one that is not a positive finite number.
    """
    if not weights or any(not math.isfinite(w) or w <= 0 for w in weights):
        raise ValueError(f"task weights must be positive numbers, at least one: {list(weights)}")
    total = math.fsum(weights)
    shares = [Fraction(w / total).limit_denominator(_FINEST) for w in weights]
    if sum(shares) == 1 and math.lcm(*(share.denominator for share in shares)) <= _FINEST:
        return shares
    parts = [max(1, math.floor(_FINEST * w / total)) for w in weights]
    # What rounding down left over goes to the largest remainders.
    order = sorted(range(len(weights)), key=lambda k: parts[k] - _FINEST * weights[k] / total)
    for k in order[: max(0, _FINEST - sum(parts))]:
        parts[k] += 1
    return [Fraction(part, sum(parts)) for part in parts]


def _stride(cycle: int) -> int:
    """How the offsets of a cycle follow each other: one by one in a short cycle; in a long one by about the
    golden section of it, so that a few batches in a row already hold the weights nearly."""
    if cycle <= 64:
        return 1
    return next(k for k in range(round(cycle * 0.618), cycle) if math.gcd(k, cycle) == 1)
