"""Records of TFRecord shards by number, in any order, without holding them in memory."""

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer.errors import DataError

# A record is its length, 8 bytes; a checksum, 4; the data; another checksum, 4.
HEADER = 12
FOOTER = 4


class ShardReader:
    """Random access to all records of `files`, counted through in their order.

    Raises:
      DataError: a file ends inside a record; names it.
    """

    def __init__(self, files: Sequence[Path]):
        self._descriptors = [os.open(file, os.O_RDONLY) for file in files]
        located = [_locate(file, descriptor) for file, descriptor in zip(files, self._descriptors, strict=True)]
        self._offsets = np.concatenate([offsets for offsets, _ in located])
        self._lengths = np.concatenate([lengths for _, lengths in located])
        self._shards = np.repeat(np.arange(len(files)), [len(offsets) for offsets, _ in located])

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """The serialized records `numbers`, int64 [n], as an object array of bytes, [n]."""
        found = np.empty(len(numbers), object)
        for place, number in enumerate(numbers):
            descriptor = self._descriptors[self._shards[number]]
            found[place] = os.pread(descriptor, int(self._lengths[number]), int(self._offsets[number]))
        return found


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
