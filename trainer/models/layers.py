"""Layers that Keras 3 lacks on the TensorFlow backend, or has only slowly."""

import contextlib
import contextvars
from collections.abc import Iterator

import keras
import tensorflow as tf

from trainer.draws import Draws

_draws: contextvars.ContextVar[Draws] = contextvars.ContextVar("draws")


@contextlib.contextmanager
def drawing(draws: Draws) -> Iterator[None]:
    """What layers that draw at random in training take it from in the block.

    Keras' own seeds are variables that every call changes: with them a resumed run would draw
    other numbers, and so would another number of workers.
    """
    token = _draws.set(draws)
    try:
        yield
    finally:
        _draws.reset(token)


@keras.saving.register_keras_serializable(package="kfp_vision")
class FusedBatchNormalization(keras.layers.Layer):
    """Batch normalisation over [N, H, W, C] by TensorFlow's fused kernel.

    keras.layers.BatchNormalization runs as a dozen separate kernels: 3.5 times slower in
    float32, 5.5 times in bfloat16, on CPU.  Scale, offset and statistics are float32
    whatever the activations are.  In training the batch's biased variance normalises, and
    the moving variance takes the unbiased one, as the 2019 trainers' layer did.

    `group`: examples that share statistics; the batch is cut into groups of that many, in
    order, so that the mathematics does not depend on how many replicas cut the batch.
    0 takes the whole of the replica's slice.  Source: Ioffe and Szegedy 2015, arXiv
    1502.03167; groups of a fixed size: Hoffer et al. 2017, arXiv 1705.08741.
    """

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, group: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.momentum = momentum
        self.epsilon = epsilon
        self.group = group

    def build(self, input_shape):
        """Makes scale, offset and the two moving statistics, each [C] and float32."""

        def weight(name: str, initializer: str, trainable: bool):
            return self.add_weight(
                name=name, shape=input_shape[-1:], initializer=initializer, trainable=trainable, dtype="float32",
                autocast=False,
            )  # fmt: skip

        self.scale = weight("scale", "ones", True)
        self.offset = weight("offset", "zeros", True)
        self.moving_mean = weight("moving_mean", "zeros", False)
        self.moving_variance = weight("moving_variance", "ones", False)

    def call(self, inputs, training=False):
        """Normalised `inputs`, same shape and dtype; in training, moves the statistics."""
        if not training:
            outputs, _, _ = self._fused(inputs, self.moving_mean.value, self.moving_variance.value, training=False)
            return outputs
        groups = self._groups(inputs.shape[0]) if self.group else 1
        slices = tf.split(inputs, groups) if groups > 1 else [inputs]
        parts = [self._fused(part, [], [], training=True) for part in slices]
        self._move(self.moving_mean, tf.add_n([mean for _, mean, _ in parts]) / groups)
        self._move(self.moving_variance, tf.add_n([variance for _, _, variance in parts]) / groups)
        return tf.concat([outputs for outputs, _, _ in parts], axis=0) if groups > 1 else parts[0][0]

    def _groups(self, size: int | None) -> int:
        if size is None or size % self.group:
            raise ValueError(f"a group of {self.group} must divide the batch, which has {size} examples")
        return size // self.group

    def _fused(self, inputs, mean, variance, *, training: bool):
        outputs, batch_mean, batch_variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.scale.value,
            offset=self.offset.value,
            mean=mean,
            variance=variance,
            epsilon=self.epsilon,
            is_training=training,
        )
        return outputs, batch_mean, batch_variance

    def _move(self, variable, statistic):
        variable.assign(variable.value * self.momentum + statistic * (1.0 - self.momentum))

    def get_config(self):
        """What `from_config` needs."""
        return super().get_config() | {"momentum": self.momentum, "epsilon": self.epsilon, "group": self.group}
