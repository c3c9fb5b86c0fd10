"""How replicas share the work: (config, cluster) → tf.distribute.Strategy.

The only module that names the strategy classes.
"""

import logging
from collections.abc import Callable

import tensorflow as tf

from trainer.cluster import Cluster
from trainer.config import Config
from trainer.errors import Preempted, UsageError

logger = logging.getLogger(__name__)


def create(config: Config, cluster: Cluster) -> tf.distribute.Strategy:
    """The strategy that `config` names, with this process's place in `cluster`.

    With several workers it must be made before any tensor, data set, optimizer or summary
    writer: it starts the server that the others meet, and TensorFlow then refuses whatever
    was set up without it.  It waits for as long as it takes every peer to come.

    Raises:
      UsageError: the strategy does not fit the workers or devices.
      Preempted: the server could not start, or the others could not be joined.
    """
    name = _default(cluster) if config.strategy == "default" else config.strategy
    if cluster.size > 1 and name != "multi_worker_mirrored":
        raise UsageError(f"strategy={name}: cannot use {cluster.size} workers; multi_worker_mirrored or default can")
    strategy = STRATEGIES[name](cluster)
    logger.info(
        "strategy %s: worker %d of %d, %d replicas", name, cluster.index, cluster.size, strategy.num_replicas_in_sync
    )
    return strategy


def _default(cluster: Cluster) -> str:
    if cluster.size > 1:
        return "multi_worker_mirrored"
    return "mirrored" if len(_gpus()) > 1 else "one_device"


def _off(cluster: Cluster) -> tf.distribute.Strategy:
    if len(_gpus()) > 1:
        raise UsageError(f"strategy=off: cannot use {len(_gpus())} devices; mirrored or default can")
    return tf.distribute.get_strategy()


def _one_device(cluster: Cluster) -> tf.distribute.Strategy:
    return tf.distribute.OneDeviceStrategy("/gpu:0" if _gpus() else "/cpu:0")


def _mirrored(cluster: Cluster) -> tf.distribute.Strategy:
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _multi_worker_mirrored(cluster: Cluster) -> tf.distribute.Strategy:
    workers = cluster.workers or ("localhost:0",)
    resolver = None
    if cluster.workers:
        logger.info("waiting for %d workers: %s", cluster.size, ", ".join(cluster.workers))
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": list(workers)}), task_type="worker", task_id=cluster.index, rpc_layer="grpc"
        )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except RuntimeError as error:
        if "program startup" not in str(error):
            raise
        raise RuntimeError(
            "something made a tensor, data set, optimizer or summary writer before the strategy; "
            "move it below strategy.create in trainer.train.run"
        ) from error
    except (tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.UnknownError) as error:
        here = workers[cluster.index]
        raise Preempted(f"worker {cluster.index} at {here}: could not join the others: {error.message}") from error


STRATEGIES: dict[str, Callable[[Cluster], tf.distribute.Strategy]] = {
    "off": _off,
    "one_device": _one_device,
    "mirrored": _mirrored,
    "multi_worker_mirrored": _multi_worker_mirrored,
}


def _gpus() -> list:
    return tf.config.list_physical_devices("GPU")
