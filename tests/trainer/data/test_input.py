import json
import textwrap

import numpy as np
import pytest
import tensorflow as tf

from trainer.config import Config
from trainer.data import input, order
from trainer.data.augment import augment
from trainer.data.examples import InMemory
from trainer.draws import Draws

EXAMPLES = 50
CONFIG = Config(batch_size=8, seed=3, crop_padding=1, random_flip="on")


def numbered(count: int = EXAMPLES) -> InMemory:
    """Example i has the label i, and an image that shows it."""
    labels = np.arange(count, dtype=np.int32)
    images = np.broadcast_to(labels[:, None, None, None] + 1, (count, 6, 6, 1)).astype(np.uint8)
    return InMemory.of(images * np.arange(1, 7, dtype=np.uint8)[None, None, :, None], labels)


def wanted(step: int) -> tuple[list, list]:
    """Images and labels of the global batch `step`, without the chain."""
    number = tf.constant(step, tf.int64)
    indices = order.training_batch(CONFIG.seed, number, CONFIG.batch_size, EXAMPLES)
    images, labels = numbered().take(indices)
    assert labels.numpy().tolist() == indices.numpy().tolist()
    epochs = (step * CONFIG.batch_size + np.arange(CONFIG.batch_size)) // EXAMPLES
    draws = Draws(CONFIG.seed, number, tf.range(CONFIG.batch_size), CONFIG.batch_size)
    images = augment(CONFIG, images, indices, tf.constant(epochs, tf.int64), draws)
    return images.numpy().tolist(), labels.numpy().tolist()


def wanted_evaluation(passes: int) -> tuple[list[list[int]], list[list[float]]]:
    steps = -(-EXAMPLES // 8)
    labels = [[min(8 * step + place, EXAMPLES - 1) for place in range(8)] for step in range(steps)]
    weights = [[float(8 * step + place < EXAMPLES) for place in range(8)] for step in range(steps)]
    return labels * passes, weights * passes


@pytest.mark.parametrize("first_step", [0, 7])
def test_without_replicas_the_batches_are_those_of_the_order(first_step):
    batches = input.training(tf.distribute.get_strategy(), numbered(), CONFIG, first_step)
    for step in range(first_step, first_step + 15):  # over the ends of two epochs
        images, labels = next(batches)
        assert (images.dtype, images.shape, labels.dtype) == (tf.uint8, (8, 6, 6, 1), tf.int32)
        assert (images.numpy().tolist(), labels.numpy().tolist()) == wanted(step), step


def test_evaluation_goes_over_all_examples_and_then_again():
    batches = input.evaluation(tf.distribute.get_strategy(), numbered(), CONFIG)
    steps = input.evaluation_steps(numbered(), CONFIG)
    assert steps == 7
    labels, weights = wanted_evaluation(passes=2)
    for step in range(2 * steps):
        images, found, weight = next(batches)
        assert (found.numpy().tolist(), weight.numpy().tolist()) == (labels[step], weights[step])
        assert (images.numpy() == numbered().images.numpy()[labels[step]]).all()  # nothing is drawn here


@pytest.mark.parametrize(("examples", "steps"), [(1, 1), (7, 1), (8, 1), (9, 2), (16, 2)])
def test_one_pass_of_evaluation_has_no_step_too_many(examples, steps):
    assert input.evaluation_steps(numbered(examples), CONFIG) == steps


MIRRORED = """
import json, sys
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration() for _ in range(2)])
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
sys.path.insert(0, "tests/trainer/data")
from test_input import CONFIG, numbered
from trainer.data import input

def batch(iterator):
    slices = zip(*(strategy.experimental_local_results(part) for part in next(iterator)))
    return [[part.numpy().tolist() for part in each] for each in slices]

found = {"replicas": strategy.num_replicas_in_sync}
for first_step in (0, 7):
    batches = input.training(strategy, numbered(), CONFIG, first_step)
    found[f"training from {first_step}"] = [batch(batches) for _ in range(15)]
batches = input.evaluation(strategy, numbered(), CONFIG)
found["evaluation"] = [[part[1:] for part in batch(batches)] for _ in range(14)]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def mirrored(run_python) -> dict:
    done = run_python("-c", textwrap.dedent(MIRRORED), env={"CUDA_VISIBLE_DEVICES": "-1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("first_step", [0, 7])
def test_the_slices_of_two_replicas_make_up_the_batch_in_order(mirrored, first_step):
    assert mirrored["replicas"] == 2
    for step, slices in enumerate(mirrored[f"training from {first_step}"], start=first_step):
        assert [len(labels) for _, labels in slices] == [4, 4]
        images, labels = (slices[0][part] + slices[1][part] for part in range(2))
        assert (images, labels) == wanted(step), step


def test_the_slices_of_two_replicas_make_up_evaluation(mirrored):
    labels, weights = wanted_evaluation(passes=2)
    found = mirrored["evaluation"]
    assert [first[0] + second[0] for first, second in found] == labels
    assert [first[1] + second[1] for first, second in found] == weights
