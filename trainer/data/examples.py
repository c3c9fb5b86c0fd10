"""The examples of a split, to be had by index."""

import dataclasses
import logging
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from trainer.data.dataset import DataSet, read

from trainer.config import Config
from trainer.data.preprocess import decode, resize
from trainer.errors import DataError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Examples:
    """Decoded images, uint8 [N, S, S, C], and labels, int32 [N], in memory."""

    images: tf.Tensor
    labels: tf.Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]

    def take(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Images [n, S, S, C] and labels [n] at `indices`."""
        return tf.gather(self.images, indices), tf.gather(self.labels, indices)


def load(dataset: DataSet, config: Config, workers_here: int) -> tuple[Examples, Examples | None]:
    """The training examples and, where there are any, those for validation, at image_size.

    Without a validation split, validation_fraction of train is held out, by the hash of
    each image: the same images are held out whatever else the data holds.

    Raises:
      DataError: no training split, or more decoded images than resident_gib allows.
    """
    if "train" not in dataset.splits:
        raise DataError(f"{dataset.directory}: has no split 'train'; it has {', '.join(dataset.splits)}")
    wanted = ["train"] if config.skip_eval or not dataset.splits.get("validation") else ["train", "validation"]
    _check_room(sum(dataset.splits[split] for split in wanted), dataset, config, workers_here)
    images, labels, ids = _decoded(dataset, "train", config.image_size)
    if "validation" in wanted:
        return _examples(images, labels), _examples(*_decoded(dataset, "validation", config.image_size)[:2])
    fraction = 0.0 if dataset.splits.get("validation") else config.validation_fraction
    held_out = np.array([int(name[:8], 16) < fraction * 2**32 for name in ids])
    if not held_out.any():
        return _examples(images, labels), None
    if held_out.all():
        raise DataError(f"{dataset.directory}: validation_fraction={fraction} leaves no example to train on")
    train = _examples(images[~held_out], labels[~held_out])
    if config.skip_eval:
        return train, None
    logger.info("no validation split: %d of %d training examples held out", held_out.sum(), len(labels))
    return train, _examples(images[held_out], labels[held_out])


def _check_room(examples: int, dataset: DataSet, config: Config, workers_here: int) -> None:
    needed = workers_here * examples * config.image_size**2 * dataset.image_shape[2] / 2**30
    if needed > config.resident_gib:
        raise DataError(
            f"{dataset.directory}: {examples} images at image_size={config.image_size} take {needed:.1f} GiB "
            f"in {workers_here} workers, over resident_gib={config.resident_gib:g}; raise it or make image_size smaller"
        )


def _decoded(dataset: DataSet, split: str, size: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images [N, size, size, C], labels [N] and ids [N] of a split, in stored order."""
    channels = dataset.image_shape[2]
    count = dataset.splits[split]
    images = np.empty((count, size, size, channels), np.uint8)
    labels = np.empty(count, np.int32)
    ids: list[str] = []

    def encoded() -> Iterator[bytes]:
        for place, example in enumerate(read(dataset, split)):
            labels[place] = example.label
            ids.append(example.id)
            yield example.image

    def pixels(image_bytes: tf.Tensor) -> tf.Tensor:
        return resize(decode(image_bytes, channels)[None], size)[0]

    stream = tf.data.Dataset.from_generator(encoded, output_signature=tf.TensorSpec([], tf.string))
    done = 0
    for batch in stream.map(pixels, tf.data.AUTOTUNE).batch(256).prefetch(1).as_numpy_iterator():
        images[done : done + len(batch)] = batch
        done += len(batch)
    if done != count:
        raise DataError(f"{dataset.directory}: split '{split}' has {done} examples, its manifest says {count}")
    return images, labels, ids


def _examples(images: np.ndarray, labels: np.ndarray) -> Examples:
    with tf.device("CPU:0"):  # the input chain runs there, whatever trains
        return Examples(tf.constant(images), tf.constant(labels))
