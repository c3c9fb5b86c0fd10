"""Records of TFRecord shards by number, in any order, without holding them in memory."""

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from trainer.errors import DataError

# A record is its length, 8 bytes; a checksum, 4; the data; another checksum, 4.
HEADER = 12
FOOTER = 4
READ_AHEAD = 65536


class ShardReader:
    """Random access to all records of `files`, counted through in their order.

    Raises:
      DataError: a file ends inside a record; names it.
    """

    def __init__(self, files: Sequence[Path]):
        self.files = [Path(file).absolute() for file in files]
        self._descriptors = [os.open(file, os.O_RDONLY) for file in files]
        located = [_locate(file, descriptor) for file, descriptor in zip(files, self._descriptors, strict=True)]
        self._offsets = np.concatenate([offsets for offsets, _ in located])
        self._lengths = np.concatenate([lengths for _, lengths in located])
        self._shards = np.repeat(np.arange(len(files)), [len(offsets) for offsets, _ in located])

    def __len__(self) -> int:
        return len(self._offsets)

    def take(self, numbers: tf.Tensor) -> tf.Tensor:
        """What `read` gives, string [n], as an op of this process."""
        # Stateless, or op determinism would have the input chain make one batch at a time.
        return tf.ensure_shape(tf.numpy_function(self.read, [numbers], tf.string, stateful=False), numbers.shape)

    def located(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The file, its place in `files`, and the byte in it at which each record begins: int64 [n] each."""
        return self._shards[numbers], self._offsets[numbers] - HEADER

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """The serialized records `numbers`, int64 [n], as an object array of bytes, [n]."""
        found = np.empty(len(numbers), object)
        for place, number in enumerate(numbers):
            descriptor = self._descriptors[self._shards[number]]
            found[place] = os.pread(descriptor, int(self._lengths[number]), int(self._offsets[number]))
        return found


class SharedShards:
    """The records of `reader` by TensorFlow's own ops, for any process that sees the files where they are here.

    Forty times slower than ShardReader, and still nothing beside the decoding of an image.
    """

    def __init__(self, reader: ShardReader):
        shards, offsets = reader.located(np.arange(len(reader)))
        with tf.device("CPU:0"):
            self._shards, self._offsets = tf.constant(shards), tf.constant(offsets)
            self._files = tf.constant([str(file) for file in reader.files])

    def take(self, numbers: tf.Tensor) -> tf.Tensor:
        """As ShardReader.take."""
        files = tf.gather(self._files, tf.gather(self._shards, numbers))
        begins = tf.data.Dataset.from_tensor_slices((files, tf.gather(self._offsets, numbers)))
        records = begins.flat_map(_record).batch(numbers.shape[0], drop_remainder=True)
        return records.get_single_element()


def _record(file: tf.Tensor, begin: tf.Tensor) -> tf.data.Dataset:
    # tf.data.TFRecordDataset cannot begin in the middle of a file; the op under it can.
    rest = tf.raw_ops.TFRecordDatasetV2(
        filenames=file, compression_type="", buffer_size=tf.constant(READ_AHEAD, tf.int64), byte_offsets=begin
    )
    return tf.data.experimental.from_variant(rest, tf.TensorSpec([], tf.string)).take(1)


def _locate(file: Path, descriptor: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each record's data starts, and how long it is: int64 [records] each."""
    size = os.fstat(descriptor).st_size
    offsets: list[int] = []
    lengths: list[int] = []
    end = 0
    while end < size:
        header = os.pread(descriptor, HEADER, end)
        length = struct.unpack("<Q", header[:8])[0] if len(header) == HEADER else size
        if end + HEADER + length + FOOTER > size:
            raise DataError(f"{file}: ends inside record {len(offsets)}; it was cut short or changed")
        offsets.append(end + HEADER)
        lengths.append(length)
        end += HEADER + length + FOOTER
    return np.array(offsets, np.int64), np.array(lengths, np.int64)
