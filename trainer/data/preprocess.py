"""What an image goes through on its way to the model, the same in training, evaluation and serving."""

import tensorflow as tf

from trainer.config import Config


def decode(image_bytes: tf.Tensor, channels: int) -> tf.Tensor:
    """One encoded JPEG or PNG to uint8 [H, W, channels]; grey and colour are converted."""
    return tf.io.decode_image(image_bytes, channels=channels, expand_animations=False)


def resize(images: tf.Tensor, size: int) -> tf.Tensor:
    """uint8 [N, H, W, C] to uint8 [N, size, size, C]; what has that size already is left as it is.

    Bilinear, with antialiasing where it shrinks.  The whole image is kept: sides that
    differ are scaled differently.
    """
    channels = images.shape[-1]
    if images.shape[1:3] == (size, size):
        return images

    def scaled() -> tf.Tensor:
        floats = tf.image.resize(images, [size, size], antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(floats), 0.0, 255.0), tf.uint8)

    fits = tf.reduce_all(tf.shape(images)[1:3] == size)
    resized = tf.cond(fits, lambda: images, scaled)
    return tf.ensure_shape(resized, [None, size, size, channels])


def pixels(image_bytes: tf.Tensor, size: int, channels: int) -> tf.Tensor:
    """One encoded JPEG or PNG to uint8 [size, size, channels]."""
    return resize(decode(image_bytes, channels)[None], size)[0]


def standardize(images: tf.Tensor, config: Config) -> tf.Tensor:
    """uint8 [N, H, W, C] to float32, by config.standardization.

    image: of mean 0 and variance 1 in each image, a flat one becomes 0; channel: minus
    channel_means, over channel_deviations; mean: minus channel_means alone.
    """
    images = tf.cast(images, tf.float32)
    if config.standardization == "image":
        return tf.image.per_image_standardization(images)
    images -= tf.constant(config.channel_means)
    return images / tf.constant(config.channel_deviations) if config.standardization == "channel" else images
