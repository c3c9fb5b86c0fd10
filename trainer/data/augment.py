"""Random changes to training images, drawn from (seed, step, position in the global batch).

Each works on a whole batch at once: a gather a batch is many times faster than an op an image.
"""

import tensorflow as tf

from trainer.config import Config


def augment(config: Config, images: tf.Tensor, step: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """`images`, uint8 [N, S, S, C], cropped and flipped at random, same shape.

    `start`: where the N stand in the global batch.  Draws are made for the whole batch and
    cut, so they do not depend on who holds which part of it.
    """
    count, size = images.shape[0], images.shape[1]
    padding = config.crop_padding

    def draw(high: int, salt: int) -> tf.Tensor:
        seed = [config.seed * 8 + salt, tf.cast(step, tf.int64)]
        drawn = tf.random.stateless_uniform([config.batch_size], seed, 0, high, tf.int32)
        return drawn[start : start + count]

    rows = tf.range(size)[None, :] + tf.zeros([count, 1], tf.int32)
    columns = rows
    if padding:
        images = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
        rows += draw(2 * padding + 1, 0)[:, None]
        columns += draw(2 * padding + 1, 1)[:, None]
    if config.random_flip == "on":
        mirrored = tf.cast(draw(2, 2), tf.bool)[:, None]
        columns = tf.where(mirrored, tf.reverse(columns, [1]), columns)
    if not padding and config.random_flip != "on":
        return images
    return tf.gather(tf.gather(images, rows, batch_dims=1, axis=1), columns, batch_dims=1, axis=2)
