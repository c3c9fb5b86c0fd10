"""Setting TensorFlow up for this machine, before anything else is made with it."""

import logging

import keras
import tensorflow as tf

from trainer import machine
from trainer.cluster import Cluster

logger = logging.getLogger(__name__)


def configure(seed: int, cluster: Cluster) -> None:
    """Seeds, threads and GPU memory.  Makes no tensor: the strategy has to be the first that does.

    Workers of one host share its cores.
    """
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    try:
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
        threads = max(1, machine.cores() // cluster.neighbours)
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:  # a notebook, or a second training in one process
        logger.warning("TensorFlow is in use already: its threads and memory stay as they are")


def computes_in_bfloat16() -> bool:
    """Whether what trains, the GPUs or else the CPU, has bfloat16 arithmetic."""
    visible = tf.config.list_physical_devices("GPU")
    if not visible:
        return machine.computes_in_bfloat16()
    details = [tf.config.experimental.get_device_details(gpu) for gpu in visible]
    return all(detail.get("compute_capability", (0, 0)) >= (8, 0) for detail in details)
