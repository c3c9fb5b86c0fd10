"""The training loop: many steps in one call of the device, actions between the calls."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.data.preprocess import standardize
from trainer.errors import NumericsError, Preempted
from trainer.schedule import Plan

# The longest that one call should keep the process deaf to signals and silent.
SECONDS_PER_CALL = 1.0


@dataclasses.dataclass
class State:
    """Where training is.  With the variables, all that is needed to go on with the same bits.

    loss_sum and correct_sum run over the steps since `since`, the last row of history;
    `best` is the row with the lowest eval_loss.
    """

    step: int = 0
    since: int = 0
    loss_sum: float = 0.0
    correct_sum: float = 0.0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best: dict[str, Any] | None = None
    stopped: str = ""


class Call(NamedTuple):
    """One call of the device: the steps it made and the seconds it took."""

    steps: int
    seconds: float


# Called after each call of the device.
Action = Callable[[State, Call], None]


def make_train_call(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    rates: Sequence[float],
    config: Config,
) -> Callable:
    """A function (iterator, first step, count, sums) → sums, float64 [3], that trains `count` steps.

    sums: of the loss, of the accuracy, and the first step with a number that is not finite
    (−1: none).
    """
    train_step = _make_train_step(strategy, model, optimizer, rates, config)

    @tf.function
    def train_call(iterator, first, count, sums):
        loss_sum, correct_sum, bad = tf.unstack(sums)
        for step in tf.range(first, first + count):
            replies = strategy.run(train_step, args=(next(iterator), step))
            loss, accuracy, finite = (strategy.experimental_local_results(reply)[0] for reply in replies)
            loss_sum, correct_sum = loss_sum + loss, correct_sum + accuracy
            bad = tf.where((bad < 0) & ~finite, tf.cast(step, tf.float64), bad)
        return tf.stack([loss_sum, correct_sum, bad])

    return train_call


def _make_train_step(strategy, model, optimizer, rates: Sequence[float], config: Config) -> Callable:
    """A function (batch, step) → (loss, accuracy, whether all was finite) for one replica.

    One all-reduce a step carries gradients, batch-norm statistics and metrics, so every
    replica holds the same state after every step.
    """
    schedule = tf.constant(rates, tf.float32)
    trainable, moving = model.trainable_variables, model.non_trainable_variables
    decayed = [place for place, v in enumerate(trainable) if v.name in ("kernel", "bias")]
    replicas = strategy.num_replicas_in_sync
    update = _make_update(optimizer, trainable, moving)

    def train_step(batch, step):
        images, labels = batch
        weights = [variable.value for variable in trainable]
        with tf.GradientTape() as tape:
            logits, statistics = model.stateless_call(
                weights, [variable.value for variable in moving], standardize(images), training=True
            )
            losses = _cross_entropy(labels, logits, config.label_smoothing)
            loss = tf.reduce_sum(losses) / config.batch_size
            penalty = tf.add_n([tf.reduce_sum(tf.square(weights[place])) for place in decayed])
            objective = loss + config.weight_decay * penalty / replicas
        gradients = tape.gradient(objective, weights)
        accuracy = tf.reduce_sum(_correct(labels, logits)) / config.batch_size
        context = tf.distribute.get_replica_context()
        mine = [*gradients, *(statistic / replicas for statistic in statistics), loss, accuracy]
        flat = context.all_reduce(tf.distribute.ReduceOp.SUM, _pack(mine))
        *reduced, loss, accuracy = _unpack(flat, mine)
        context.merge_call(update, args=(reduced[: len(weights)], reduced[len(weights) :], schedule[step]))
        finite = tf.reduce_all(tf.math.is_finite(flat))
        return tf.cast(loss, tf.float64), tf.cast(accuracy, tf.float64), finite

    return train_step


def _make_update(optimizer, trainable: Sequence, moving: Sequence) -> Callable:
    """A function for merge_call that sets all variables by gradients and statistics that are reduced already.

    optimizer.apply would reduce the gradients a second time.
    """

    def descend(variable, gradient, rate):
        optimizer.update_step(gradient, variable, rate)

    def update(strategy, gradients, statistics, rate):
        for gradient, variable in zip(gradients, trainable, strict=True):
            strategy.extended.update(variable.value, descend, args=(gradient, rate), group=False)
        for statistic, variable in zip(statistics, moving, strict=True):
            strategy.extended.update(variable.value, lambda v, s: v.assign(s), args=(statistic,), group=False)
        optimizer.iterations.assign_add(1)

    return update


def make_evaluate_call(strategy: tf.distribute.Strategy, model: keras.Model) -> Callable:
    """A function (iterator, count) → (mean loss, accuracy) over `count` batches, as numpy floats."""

    def evaluate_step(batch):
        images, labels, weights = batch
        logits = model(standardize(images), training=False)
        losses = _cross_entropy(labels, logits, 0.0)
        mine = [tf.reduce_sum(weights * part) for part in (losses, _correct(labels, logits))]
        mine.append(tf.reduce_sum(weights))
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.stack(mine))

    @tf.function
    def evaluate_call(iterator, count):
        sums = tf.zeros([3], tf.float64)
        for _ in tf.range(count):
            reply = strategy.run(evaluate_step, args=(next(iterator),))
            sums += tf.cast(strategy.experimental_local_results(reply)[0], tf.float64)
        return sums

    def mean(iterator, count: int) -> tuple[float, float]:
        loss, correct, weight = evaluate_call(iterator, tf.constant(count)).numpy()
        return loss / weight, correct / weight

    return mean


def make_mean(strategy: tf.distribute.Strategy) -> Callable[[float], float]:
    """A function that gives every worker the mean of the numbers that all workers call it with."""

    @tf.function
    def sums(number):
        def mine(number):
            here = tf.identity(number)  # a reduction needs to know the device
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, here)

        return strategy.run(mine, args=(number,))

    def mean(number: float) -> float:
        if strategy.num_replicas_in_sync == 1:
            return number
        total = strategy.experimental_local_results(sums(tf.constant(number, tf.float64)))[0]
        return float(total) / strategy.num_replicas_in_sync

    return mean


def run(
    train_call: Callable,
    iterator,
    plan: Plan,
    state: State,
    config: Config,
    mean: Callable[[float], float],
    actions: Sequence[Action],
) -> None:
    """Trains from state.step to the end of `plan`, or until an action sets state.stopped.

    Every worker has to make the same calls with as many steps each: TensorFlow matches
    collectives by their iteration within a call, and waits for ever where it differs.  So
    the pace is that of all workers, by `mean`.

    Raises:
      NumericsError: the loss, a gradient or a statistic is not finite; names the step.
      Preempted: another worker is gone.
    """
    pace = _Pace(config.steps_per_loop)
    while state.step < plan.total and not state.stopped:
        with lost_peers(state):
            count = min(pace.steps, plan.next_stop(state.step, config.checkpoint_steps) - state.step)
            began = time.perf_counter()
            sums = np.array([state.loss_sum, state.correct_sum, -1.0])
            sums = train_call(iterator, tf.constant(state.step), tf.constant(count), tf.constant(sums)).numpy()
            call = Call(count, mean(time.perf_counter() - began))
            if sums[2] >= 0:
                what = "the loss or a gradient is not finite; try a lower learning_rate"
                raise NumericsError(f"step {int(sums[2])}: {what}")
            state.loss_sum, state.correct_sum = float(sums[0]), float(sums[1])
            state.step += count
            pace.took(call)
            for action in actions:
                action(state, call)


@contextlib.contextmanager
def lost_peers(state: State) -> Iterator[None]:
    """Turns what TensorFlow says when another worker goes away during the block into Preempted."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        raise Preempted(f"step {state.step}: another worker is gone: {error.message.splitlines()[0]}") from error


class _Pace:
    """How many steps fit into a call of SECONDS_PER_CALL."""

    def __init__(self, fixed: int):
        self.fixed = fixed
        self.steps = fixed or 1
        self.calls = 0

    def took(self, call: Call) -> None:
        self.calls += 1
        if self.fixed or self.calls == 1:  # the first call also compiles
            return
        fitting = int(SECONDS_PER_CALL * call.steps / max(call.seconds, 1e-6))
        self.steps = max(1, min(fitting, 4 * self.steps))


def _cross_entropy(labels: tf.Tensor, logits: tf.Tensor, smoothing: float) -> tf.Tensor:
    if not smoothing:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    classes = logits.shape[-1]
    targets = tf.one_hot(labels, classes) * (1.0 - smoothing) + smoothing / classes
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


def _correct(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.argmax(logits, axis=-1, output_type=tf.int32) == labels, tf.float32)


def _pack(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)


def _unpack(flat: tf.Tensor, like: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    parts = tf.split(flat, [tensor.shape.num_elements() for tensor in like])
    return [tf.reshape(part, tensor.shape) for part, tensor in zip(parts, like, strict=True)]
