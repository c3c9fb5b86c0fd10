"""The one input chain: examples → endless batches of a worker's own slices."""

import tensorflow as tf

from trainer.config import Config
from trainer.data import order
from trainer.data.augment import augment
from trainer.data.examples import Examples


def training(strategy: tf.distribute.Strategy, examples: Examples, config: Config, first_step: int):
    """A distributed iterator of (images uint8 [n, S, S, C], labels int32 [n]) from `first_step` on.

    n is a replica's share of batch_size.
    """

    def slice_of(step: tf.Tensor, start: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
        indices = order.training_batch(config.seed, step, config.batch_size, len(examples))
        images, labels = examples.take(_cut(indices, start, count))
        return augment(config, images, step, start), labels

    return _distribute(strategy, slice_of, config.batch_size, first_step)


def evaluation(strategy: tf.distribute.Strategy, examples: Examples, config: Config):
    """A distributed iterator of (images, labels, weights float32 [n]) over `examples` in order.

    It starts again after the last; `evaluation_steps` says how many batches are one pass.
    """
    steps = evaluation_steps(examples, config)

    def slice_of(step: tf.Tensor, start: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        indices, weights = order.evaluation_batch(step % steps, config.batch_size, len(examples))
        return *examples.take(_cut(indices, start, count)), _cut(weights, start, count)

    return _distribute(strategy, slice_of, config.batch_size, 0)


def evaluation_steps(examples: Examples, config: Config) -> int:
    """Batches in one pass of `evaluation`."""
    return -(-len(examples) // config.batch_size)


def _distribute(strategy: tf.distribute.Strategy, slice_of, batch_size: int, first_step: int):
    replicas = strategy.num_replicas_in_sync
    count = batch_size // replicas

    def chain(context: tf.distribute.InputContext) -> tf.data.Dataset:
        here = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * here

        # A worker's replicas draw one after another from its chain: element k is the slice
        # of replica k % here in step k // here.
        def element(k: tf.Tensor):
            return slice_of(k // here, tf.cast(first + k % here, tf.int32) * count, count)

        # At most two at a time, whatever is free: training needs the cores more.
        elements = tf.data.Dataset.counter(first_step * here).map(element, num_parallel_calls=2, deterministic=True)
        return elements.prefetch(4 * here).with_options(_options())

    options = tf.distribute.InputOptions(experimental_fetch_to_device=True)
    return iter(strategy.distribute_datasets_from_function(chain, options))


def _cut(batch: tf.Tensor, start: tf.Tensor, count: int) -> tf.Tensor:
    return tf.slice(batch, [start], [count])


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options
