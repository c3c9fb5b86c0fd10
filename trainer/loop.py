"""The training loop: many steps in one call of the device, actions between the calls."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from trainer import schedule
from trainer.config import Config
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
    """One call of the device: the steps it made, the seconds it took, and when it ended (Unix seconds)."""

    steps: int
    seconds: float
    ended: float


# Called after each call of the device.
Action = Callable[[State, Call], None]

# (first step, count, sums) → sums, float64 [3], after `count` more steps: of the loss, of the
# accuracy, and the first step after which training must not go on (−1: none).
TrainCall = Callable[[int, int, np.ndarray], np.ndarray]


def make_train_call(strategy: tf.distribute.Strategy, train_step: Callable, batches, config: Config) -> TrainCall:
    """A TrainCall of all replicas together, which take what `batches` iterates over."""
    steps = make_steps(strategy, train_step)
    call = steps if config.run_eagerly else tf.function(steps)
    alone = schedule.alone(config)

    def train_call(first, count, sums):
        if first not in alone:
            return call(batches, tf.constant(first), tf.constant(count), tf.constant(sums)).numpy()
        # TensorBoard's profiler takes the iterations of a loop for the steps, and on a CPU finds no time of them.
        with tf.profiler.experimental.Trace("train", step_num=first + 1, _r=1):
            return call(batches, tf.constant(first), None, tf.constant(sums)).numpy()

    return train_call


def make_steps(strategy: tf.distribute.Strategy, train_step: Callable) -> Callable:
    """A TrainCall in TensorFlow's terms: (iterator over batches, first step, count, sums) → sums.

    A count of None is one step without a loop around it.
    """

    def steps(batches, first, count, sums):
        loss_sum, correct_sum, bad = tf.unstack(sums)
        for step in [first] if count is None else tf.range(first, first + count):
            replies = strategy.run(train_step, args=(next(batches), step))
            loss, accuracy, good = (strategy.experimental_local_results(reply)[0] for reply in replies)
            loss_sum, correct_sum = loss_sum + loss, correct_sum + accuracy
            bad = tf.where((bad < 0) & ~good, tf.cast(step, tf.float64), bad)
        return tf.stack([loss_sum, correct_sum, bad])

    return steps


def make_evaluate_call(
    strategy: tf.distribute.Strategy, evaluate_step: Callable, batches, steps: int
) -> Callable[[], tuple[float, float]]:
    """A function that gives the mean loss and the accuracy over the next `steps` of `batches`."""
    call = tf.function(make_sums(strategy, evaluate_step))

    def mean() -> tuple[float, float]:
        loss, correct, weight = call(batches, tf.constant(steps)).numpy()
        return loss / weight, correct / weight

    return mean


def make_sums(strategy: tf.distribute.Strategy, evaluate_step: Callable) -> Callable:
    """A function (iterator over batches, count) → what `evaluate_step` gives for them, summed, float64."""

    def sums(batches, count):
        total = tf.zeros([3], tf.float64)
        for _ in tf.range(count):
            reply = strategy.run(evaluate_step, args=(next(batches),))
            total += tf.cast(strategy.experimental_local_results(reply)[0], tf.float64)
        return total

    return sums


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
    train_call: TrainCall,
    plan: Plan,
    state: State,
    config: Config,
    mean: Callable[[float], float],
    actions: Sequence[Action],
    abreast: int = 1,
) -> None:
    """Trains from state.step to the end of `plan`, or until an action sets state.stopped.

    Every worker has to make the same calls with as many steps each: TensorFlow matches
    collectives by their iteration within a call, and waits for ever where it differs.  So
    the pace is that of all workers, by `mean`.  `abreast`: steps that are made side by side, by
    workers that do not wait for each other.

    Raises:
      NumericsError: the loss, a gradient or a statistic is not finite; names the step.
      Preempted: another worker is gone.
    """
    pace = _Pace(config.steps_per_loop, abreast)
    while state.step < plan.total and not state.stopped:
        with lost_peers(state):
            count = min(pace.steps, plan.next_stop(state.step, config.checkpoint_steps) - state.step)
            began = time.perf_counter()
            sums = train_call(state.step, count, np.array([state.loss_sum, state.correct_sum, -1.0]))
            seconds, ended = time.perf_counter() - began, time.time()
            call = Call(count, mean(seconds), ended)
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

    def __init__(self, fixed: int, abreast: int):
        self.fixed = fixed
        self.abreast = abreast
        self.steps = (fixed or 1) * abreast
        self.calls = 0

    def took(self, call: Call) -> None:
        self.calls += 1
        if self.fixed or self.calls == 1:  # the first call also compiles
            return
        fitting = int(SECONDS_PER_CALL * call.steps / max(call.seconds, 1e-6))
        self.steps = max(1, min(fitting, 4 * self.steps) // self.abreast) * self.abreast
