"""Setting TensorFlow up for this machine, before anything else is made with it."""

import logging
import os

import keras
import tensorflow as tf

from trainer import machine
from trainer.cluster import Cluster
from trainer.config import Config
from trainer.errors import UsageError

logger = logging.getLogger(__name__)


def configure(config: Config, cluster: Cluster) -> None:
    """Seeds, threads and GPUs.  Makes no tensor: the strategy has to be the first that does.

    Workers of one host share its cores.

    Raises:
      UsageError: num_gpus asks for more GPUs than there are.
    """
    keras.utils.set_random_seed(config.seed)
    tf.config.experimental.enable_op_determinism()
    gpus = tf.config.list_physical_devices("GPU")
    if config.num_gpus is not None and config.num_gpus > len(gpus):
        raise UsageError(f"num_gpus={config.num_gpus}: TensorFlow sees {len(gpus)} on this machine")
    if config.all_reduce_alg == "nccl" and not gpus[: config.num_gpus]:
        raise UsageError("all_reduce_alg=nccl: is for GPUs, and none is used here; auto or ring")
    share = max(1, machine.cores() // cluster.neighbours)
    try:
        tf.config.set_visible_devices(gpus[: config.num_gpus], "GPU")
        for gpu in gpus[: config.num_gpus]:
            tf.config.experimental.set_memory_growth(gpu, True)
        tf.config.threading.set_intra_op_parallelism_threads(config.intra_op_threads or share)
        tf.config.threading.set_inter_op_parallelism_threads(config.inter_op_threads or share)
    except RuntimeError:  # a notebook, or a second training in one process
        logger.warning("TensorFlow is in use already: its threads and memory stay as they are")
    # TensorFlow reads these when it first meets a GPU.
    os.environ["TF_GPU_THREAD_MODE"] = config.tf_gpu_thread_mode
    os.environ["TF_GPU_THREAD_COUNT"] = str(config.per_gpu_thread_count)


def computes_in_bfloat16() -> bool:
    """Whether what trains, the GPUs or else the CPU, has bfloat16 arithmetic."""
    visible = tf.config.list_physical_devices("GPU")
    if not visible:
        return machine.computes_in_bfloat16()
    details = [tf.config.experimental.get_device_details(gpu) for gpu in visible]
    return all(detail.get("compute_capability", (0, 0)) >= (8, 0) for detail in details)
