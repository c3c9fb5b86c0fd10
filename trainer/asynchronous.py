"""Training with parameter servers: each worker makes steps at its own pace.

The coordinator cuts a call of the device into stretches of steps, and a worker takes the next
when it has made one.  The batch of a step is a function of the step, whoever makes it.
Gradients are applied as they come, to weights that others may have changed meanwhile.
"""

import itertools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from trainer import loop
from trainer.cluster import Cluster
from trainer.config import Config
from trainer.data import input
from trainer.data.input import SliceOf
from trainer.errors import UsageError

# The more, the less a fast worker waits for a slow one at the end of a call; each costs milliseconds.
STRETCHES_PER_WORKER = 4

# (first, count) → what each stretch of the steps from `first` on gave, float64 [stretches, 3].
Spread = Callable[[int, int], np.ndarray]


def check(config: Config) -> None:
    """That `config` asks for nothing that means nothing here.

    Raises:
      UsageError: names the field.
    """
    if config.lookahead_steps:
        given = f"lookahead_steps={config.lookahead_steps}"
        raise UsageError(f"{given}: counts steps one after another; with parameter servers they are made side by side")
    if config.run_eagerly:
        raise UsageError("run_eagerly=true: runs in one process; not on the workers of parameter servers")


def make_train_call(
    replicas: tf.distribute.Strategy, train_step: Callable, slice_of: SliceOf, cluster: Cluster, config: Config
) -> loop.TrainCall:
    """A TrainCall of all workers of `cluster`, whose batches `slice_of` gives."""
    steps = loop.make_steps(replicas, train_step)

    def stretch(first: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        batches = iter(input.stretch(slice_of, first, count, config))
        return steps(batches, first, count, tf.constant([0.0, 0.0, -1.0], tf.float64))

    spread = _make_spread(replicas, stretch, cluster)

    def train_call(first: int, count: int, sums: np.ndarray) -> np.ndarray:
        found = spread(first, count)
        bad = [step for step in found[:, 2] if step >= 0]
        return np.array([*(sums[:2] + found[:, :2].sum(axis=0)), min(bad, default=-1.0)])

    return train_call


def make_evaluate_call(
    replicas: tf.distribute.Strategy,
    evaluate_step: Callable,
    slice_of: SliceOf,
    steps: int,
    cluster: Cluster,
    config: Config,
) -> Callable[[], tuple[float, float]]:
    """A function that gives the mean loss and the accuracy over the `steps` batches of `slice_of`."""
    sums = loop.make_sums(replicas, evaluate_step)

    def stretch(first: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        return sums(iter(input.stretch(slice_of, first, count, config)), count)

    spread = _make_spread(replicas, stretch, cluster)

    def mean() -> tuple[float, float]:
        loss, correct, weight = spread(0, steps).sum(axis=0)
        return loss / weight, correct / weight

    return mean


def stretches(first: int, count: int, most: int) -> list[tuple[int, int]]:
    """`count` steps from `first` on, cut into at most `most` stretches (first, count) of about the same length."""
    ends = [count * part // most for part in range(most + 1)] if count > most else list(range(count + 1))
    return [(first + start, end - start) for start, end in itertools.pairwise(ends)]


def _make_spread(replicas: tf.distribute.Strategy, stretch: Callable, cluster: Cluster) -> Spread:
    """`stretch`, a function of (first, count) in TensorFlow's terms, run on the workers."""
    coordinator = tf.distribute.coordinator.ClusterCoordinator(replicas)
    whole = tf.TensorSpec([], tf.int64)
    function = tf.function(stretch, input_signature=[whole, whole])

    def spread(first: int, count: int) -> np.ndarray:
        replies = [
            coordinator.schedule(function, args=tuple(tf.constant(number, tf.int64) for number in each))
            for each in stretches(first, count, STRETCHES_PER_WORKER * cluster.size)
        ]
        coordinator.join()
        return np.array([reply.fetch() for reply in replies])

    return spread
