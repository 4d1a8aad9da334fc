"""The mixture: exact proportions in every global batch, however the hosts cut it."""

from fractions import Fraction

import numpy as np
import pytest

from data_pipelines.mixture import TaskMixture, exact_shares, mixture_weights

CASES = [
    ([1] * 9, 36),  # divisible: every batch the same
    ([1] * 9, 8),  # fewer places than tasks
    ([1] * 9, 16),
    ([0.5, 0.25, 0.25], 4),  # the mixture that ordinary interleaving cuts into task-pure hosts
    ([0.5, 0.25, 0.25], 8),
    ([3, 1, 1, 2, 0.5], 12),
    ([0.371, 0.629], 8),
]


def batch_of(mixture: TaskMixture, number: int, size: int) -> list[tuple[int, int]]:
    return [mixture[number * size + place] for place in range(size)]


@pytest.mark.parametrize(("weights", "batch"), CASES)
def test_every_global_batch_holds_the_proportions(weights, batch):
    mixture = TaskMixture(weights, batch)
    ideal = np.array([float(share) * batch for share in mixture.shares])
    np.testing.assert_allclose(ideal, np.array(weights) / sum(weights) * batch, rtol=1e-9)
    total = np.zeros(len(weights), int)
    for number in range(2 * mixture.cycle):
        count = np.bincount([task for task, _ in batch_of(mixture, number, batch)], minlength=len(weights))
        assert (count >= np.floor(ideal - 1e-9)).all() and (count <= np.ceil(ideal + 1e-9)).all()
        total += count
        if (number + 1) % mixture.cycle == 0:  # exact over a cycle, not only nearly
            assert [Fraction(int(t), int(total.sum())) for t in total] == mixture.shares


@pytest.mark.parametrize(("weights", "batch"), CASES)
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_same_global_batch(weights, batch, hosts):
    alone = TaskMixture(weights, batch)
    each = [TaskMixture(weights, batch, h, hosts) for h in range(hosts)]
    for number in (0, 1, 7, 10**6):
        together = [place for host in each for place in batch_of(host, number, batch // hosts)]
        assert together == batch_of(alone, number, batch)


@pytest.mark.parametrize(("weights", "batch"), CASES)
def test_places_of_a_task_are_numbered_without_gaps(weights, batch):
    mixture = TaskMixture(weights, batch)
    numbers: dict[int, list[int]] = {}
    for index in range(5 * mixture.cycle * batch):
        task, number = mixture[index]
        numbers.setdefault(task, []).append(number)
    for seen in numbers.values():
        assert sorted(seen) == list(range(len(seen)))


@pytest.mark.parametrize(("weights", "batch"), CASES[:6])
@pytest.mark.parametrize("hosts", [2, 4])
def test_every_host_gets_every_task_in_its_weight(weights, batch, hosts):
    local = batch // hosts
    for host in range(hosts):
        mixture = TaskMixture(weights, batch, host, hosts)
        places = mixture.cycle * batch * local  # cycle x batch_size batches
        count = np.bincount([mixture[k][0] for k in range(places)], minlength=len(weights))
        assert [Fraction(int(c), places) for c in count] == mixture.shares


def test_shares():
    assert exact_shares([1, 2]) == [Fraction(1, 3), Fraction(2, 3)]
    odd = exact_shares([np.pi, np.e, np.sqrt(2), 1e-9])
    assert sum(odd) == 1 and odd[3] > 0
    np.testing.assert_allclose([float(s) for s in odd[:3]], [0.4319, 0.3737, 0.1944], atol=2e-3)


def test_wrong_arguments():
    for weights in ([], [1, 0], [1, -1], [1, float("nan")]):
        with pytest.raises(ValueError, match="positive"):
            TaskMixture(weights, 4)
    with pytest.raises(ValueError, match="divided among 3 hosts"):
        TaskMixture([1], 4, 0, 3)
    with pytest.raises(ValueError, match="process_index"):
        TaskMixture([1], 4, 2, 2)


def test_few_batches_of_a_long_cycle_hold_the_weights_nearly():
    mixture = TaskMixture([1.0, 2.0**0.5], 6)
    assert mixture.cycle > 400
    for first in (0, 100, 777):
        tasks = np.array([mixture[k][0] for k in range(6 * first, 6 * (first + 20))])
        assert abs(tasks.mean() - float(mixture.shares[1])) < 0.01
    numbers = sorted(number for task, number in (mixture[k] for k in range(6 * mixture.cycle)) if task == 1)
    assert numbers == list(range(len(numbers)))


def test_mixture_weights():
    lengths = {"noise": 46296, "rain": 24000, "haze": 72135}
    assert mixture_weights(lengths, "proportional") == lengths
    assert mixture_weights(lengths, "temperature", 1.0) == pytest.approx(lengths)
    assert mixture_weights(lengths, "temperature", 2.0)["rain"] == pytest.approx(24000**0.5)
    assert mixture_weights(lengths, "weights", weights={"rain": 3.0}) == {"noise": 1.0, "rain": 3.0, "haze": 1.0}
    assert set(mixture_weights(lengths, "one_per_task", batch_size=6).values()) == {1.0}
    with pytest.raises(ValueError, match="no multiple of the 3 tasks"):
        mixture_weights(lengths, "one_per_task", batch_size=4)
    with pytest.raises(ValueError, match="temperature must be a positive number"):
        mixture_weights(lengths, "temperature", 0.0)


def test_too_low_a_temperature_is_said():
    with pytest.raises(ValueError, match="too low"):
        mixture_weights({"a": 72135, "b": 9}, "temperature", 0.001)
