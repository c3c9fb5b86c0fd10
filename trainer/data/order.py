"""Which examples make up which batch: a function of (seed, step) and nothing else."""

import tensorflow as tf


def training_batch(seed: int, step: tf.Tensor, batch_size: int, examples: int) -> tf.Tensor:
    """Indices, int64 [batch_size], of the examples in training batch `step`.

    The stream of batches is one permutation of all examples after another; a batch may
    run over the end of one.  No permutation is held in memory: each index is computed by
    a block cipher (tf.random.experimental.index_shuffle).
    """
    positions = step * batch_size + tf.range(batch_size, dtype=tf.int64)
    epochs, places = positions // examples, positions % examples
    keys = tf.stack([tf.fill([batch_size], tf.constant(seed, tf.int64)), epochs, tf.zeros_like(epochs)], axis=1)
    return tf.random.experimental.index_shuffle(places, seed=tf.cast(keys, tf.int32), max_index=examples - 1)


def evaluation_batch(step: tf.Tensor, batch_size: int, examples: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Indices, int64, and weights, float32, of evaluation batch `step`, both [batch_size].

    Each example once, in order; what fills the last batch has weight 0.
    """
    positions = step * batch_size + tf.range(batch_size, dtype=tf.int64)
    return tf.minimum(positions, examples - 1), tf.cast(positions < examples, tf.float32)
