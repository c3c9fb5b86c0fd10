"""Records by number, in two ways."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.data.shards import ShardReader, SharedShards

RECORDS = [bytes([number]) * (1 + 7000 * (number % 3)) for number in range(40)]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # and shards are named as from there
    for shard in range(3):
        with tf.io.TFRecordWriter(f"shard{shard}") as writer:
            for record in RECORDS[shard::3]:
                writer.write(record)
    return [f"shard{shard}" for shard in range(3)]


def in_shards() -> list[bytes]:
    return [record for shard in range(3) for record in RECORDS[shard::3]]


def test_both_ways_give_the_records_in_any_order(files, tmp_path_factory, monkeypatch):
    reader = ShardReader(files)
    shared = SharedShards(reader)
    numbers = np.random.default_rng(1).integers(0, len(reader), 100)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))  # as another process may be
    wanted = [in_shards()[number] for number in numbers]
    assert reader.take(tf.constant(numbers)).numpy().tolist() == wanted
    assert shared.take(tf.constant(numbers)).numpy().tolist() == wanted
    assert tf.function(shared.take)(tf.constant(numbers)).shape == [100]


def test_a_flipped_byte_is_found_by_ops_that_check_each_record(files):
    with open(files[1], "r+b") as stream:
        stream.seek(12)  # the first byte of the first record
        stream.write(b"\xff")
    shared = SharedShards(ShardReader(files))
    first = len(RECORDS[0::3])
    assert shared.take(tf.constant([first - 1, first + 1])).numpy().tolist() == [RECORDS[39], RECORDS[4]]
    with pytest.raises(tf.errors.DataLossError):
        shared.take(tf.constant([first]))
