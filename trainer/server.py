"""What a worker or a parameter server does: whatever its coordinator says, until that is gone."""

import logging
import signal
import socket
import time
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer import artifact, devices, strategy
from trainer.cluster import Cluster
from trainer.errors import Interrupted, Preempted
from trainer.signals import StopSignal

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
# A coordinator that cannot be reached for so long is gone.
LOST_SECONDS = 5.0


def serve(cluster: Cluster, output: Path) -> dict[str, Any]:
    """Serves the coordinator of `cluster`; returns the manifest of the model at `output` when it has written one.

    Raises:
      Preempted: the coordinator is gone and there is no new model, or a SIGTERM came.
      Interrupted: a SIGINT came.
    """
    before = _written(output)
    try:
        # Held until the end: with the object, its server would go.
        server = tf.distribute.Server(
            strategy.cluster_spec(cluster),
            cluster.job,
            cluster.index,
            protocol="grpc",
            config=devices.of_server(cluster),
        )
    except strategy.CANNOT_JOIN as error:
        raise Preempted(f"{cluster.name} at {cluster.address}: {error.message}") from error
    stop = StopSignal()
    logger.info("%s serves the coordinator at %s", cluster.name, cluster.coordinator)
    seen = 0.0
    while not stop.received:
        if reachable(cluster.coordinator):
            seen = time.monotonic()
        elif _written(output) not in (None, before):
            del server
            return artifact.read_manifest(output, "model")
        elif seen and time.monotonic() - seen > LOST_SECONDS:
            raise Preempted(f"the coordinator at {cluster.coordinator} is gone; start all again")
        time.sleep(POLL_SECONDS)
    kind = Interrupted if stop.received == signal.SIGINT else Preempted
    raise kind(f"{cluster.name}: stopped by {signal.Signals(stop.received).name}")


def reachable(address: str) -> bool:
    """Whether anybody listens at `address`, host:port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2.0):
            return True
    except OSError:
        return False


def _written(output: Path) -> tuple[int, int] | None:
    """What tells one writing of a manifest from another; None where there is none."""
    try:
        found = (output / artifact.MANIFEST).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
