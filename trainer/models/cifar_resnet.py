"""The residual networks of He et al. 2015 (arXiv 1512.03385, section 4.2) for small images."""

import functools

import keras

from trainer.config import Config
from trainer.errors import UsageError
from trainer.models.layers import FusedBatchNormalization

FILTERS = (16, 32, 64)


def cifar_resnet(config: Config, image_shape: tuple[int, int, int], classes: int, policy: str) -> keras.Model:
    """ResNet-(6n+2): [N, H, W, C] standardised images to float32 logits [N, classes].

    Three stages of n basic blocks; the first block of every stage has a 1×1 convolution in
    its shortcut, as in TensorFlow's official trainer.  `policy` is a Keras dtype policy.

    Raises:
      UsageError: resnet_size is not 6n+2.
    """
    blocks, rest = divmod(config.resnet_size - 2, 6)
    if rest or blocks < 1:
        raise UsageError(f"resnet_size={config.resnet_size}: must be 6n+2 for cifar_resnet: 8, 14, 20, 32, 56, 110 …")
    images = keras.Input(image_shape, dtype="float32")
    conv = functools.partial(_conv_norm, config=config, policy=policy)
    x = _relu(conv(images, FILTERS[0], 3, name="stem"), policy)
    for stage, filters in enumerate(FILTERS, start=1):
        for block in range(blocks):
            strides = 2 if stage > 1 and block == 0 else 1
            name = f"stage{stage}_block{block}"
            shortcut = conv(x, filters, 1, strides=strides, name=f"{name}_shortcut") if block == 0 else x
            y = _relu(conv(x, filters, 3, strides=strides, name=f"{name}_1"), policy)
            y = conv(y, filters, 3, name=f"{name}_2")
            x = _relu(keras.layers.Add(dtype=policy)([y, shortcut]), policy)
    x = keras.layers.GlobalAveragePooling2D(dtype="float32")(x)
    initializer = keras.initializers.RandomNormal(stddev=0.01)
    logits = keras.layers.Dense(classes, kernel_initializer=initializer, dtype="float32", name="logits")(x)
    return keras.Model(images, logits, name=f"cifar_resnet{config.resnet_size}")


def _conv_norm(x, filters: int, size: int, *, config: Config, policy: str, name: str, strides: int = 1):
    x = keras.layers.Conv2D(
        filters,
        size,
        strides,
        padding="same",
        use_bias=config.conv_bias,
        kernel_initializer="he_normal",
        dtype=policy,
        name=f"{name}_conv",
    )(x)
    if config.norm == "none":
        return x
    return FusedBatchNormalization(
        config.norm_momentum, config.norm_epsilon, config.norm_group, dtype=policy, name=f"{name}_norm"
    )(x)


def _relu(x, policy: str):
    return keras.layers.ReLU(dtype=policy)(x)
