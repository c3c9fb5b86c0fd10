"""Random erasing (arXiv 1708.04896): a rectangle of an image becomes noise."""

import math

import tensorflow as tf

from trainer.draws import Draws

AREA = (0.02, 0.33)  # share of the image
ASPECT = (0.3, 1 / 0.3)  # height over width


def erase(images: tf.Tensor, draws: Draws, share: float) -> tf.Tensor:
    """`images`, uint8 [n, S, S, C], a `share` of them each with a rectangle of noise.

    The aspect is drawn evenly in its logarithm, so that a rectangle is as often wide as high.
    What would be longer than the image is as long as the image.
    """
    count, size, _, channels = images.shape
    root = size * tf.sqrt(draws.uniform("erasing area", AREA[0], AREA[1]))
    aspect = tf.exp(draws.uniform("erasing aspect", math.log(ASPECT[0]), math.log(ASPECT[1])))
    sides = root * tf.sqrt(aspect), root / tf.sqrt(aspect)
    height, width = (tf.clip_by_value(tf.round(side), 1.0, float(size)) for side in sides)
    top, left = (
        tf.floor(draws.uniform(f"erasing {side}") * (size + 1.0 - length))
        for side, length in (("top", height), ("left", width))
    )
    chosen = draws.uniform("erasing") < share
    inside = rectangles(top, left, tf.where(chosen, top + height, top), left + width, size)
    return tf.where(inside, _noise(draws, count, size * size * channels, images.shape), images)


def rectangles(top: tf.Tensor, left: tf.Tensor, bottom: tf.Tensor, right: tf.Tensor, size: int) -> tf.Tensor:
    """bool [n, size, size, 1]: which pixels are inside; bottom and right, [n], are the first outside."""
    places = tf.range(size, dtype=top.dtype)
    rows = (places >= top[:, None]) & (places < bottom[:, None])
    columns = (places >= left[:, None]) & (places < right[:, None])
    return rows[:, :, None, None] & columns[:, None, :, None]


def _noise(draws: Draws, count: int, numbers: int, shape: tf.TensorShape) -> tf.Tensor:
    """uint8 of `shape`: windows on noise that is drawn once a step.

    As much for each image of the batch would have every replica draw it for all of them.
    """
    drawn = tf.random.stateless_uniform([2 * numbers], draws.key("erasing noise"), 0, 256, tf.int32)
    starts = draws.integers("erasing window", numbers)
    return tf.reshape(tf.gather(tf.cast(drawn, tf.uint8), starts[:, None] + tf.range(numbers)), shape)
