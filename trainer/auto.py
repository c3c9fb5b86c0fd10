"""What a field that says "auto" or 0 means for one data set and machine."""

import dataclasses

from trainer.config import Config

# Enough steps to converge on what the default network can learn, and minutes on two cores.
EXAMPLES_SEEN = 120_000
EPOCHS = (10, 100)
LARGEST_IMAGE = 64


def resolve(
    config: Config, *, examples: int, image_shape: tuple[int | None, int | None, int], image_side: int, bfloat16: bool
) -> Config:
    """`config` with every automatic field decided.

    `examples`: in the training split; `image_shape`: [H, W, C], None where sizes differ;
    `image_side`: median of the shorter sides, pixels; `bfloat16`: what trains computes in it.
    """
    height, width, channels = image_shape
    side = min(height, width) if height and width else image_side
    size = config.image_size or min(side, LARGEST_IMAGE)
    return dataclasses.replace(
        config,
        image_size=size,
        crop_padding=size // 8 if config.crop_padding < 0 else config.crop_padding,
        random_flip={"auto": "on" if channels > 1 else "off"}.get(config.random_flip, config.random_flip),
        batch_size=config.batch_size or _batch_size(examples),
        train_epochs=config.train_epochs or min(max(round(EXAMPLES_SEEN / examples), EPOCHS[0]), EPOCHS[1]),
        data_format={"auto": "channels_last"}.get(config.data_format, config.data_format),
        dtype={"auto": "bf16" if bfloat16 else "fp32"}.get(config.dtype, config.dtype),
    )


def _batch_size(examples: int) -> int:
    """128, less where an epoch would have under 20 steps, a power of two."""
    size = 128
    while size > 16 and examples // size < 20:
        size //= 2
    return size
