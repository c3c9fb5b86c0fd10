"""Whether the other processes of a cluster can be reached.

TensorFlow asks a parameter server or a coordinator nothing while there is nothing to do, and
waits without limit for a worker that is gone.
"""

import math
import socket
import threading
import time
from collections.abc import Mapping

POLL_SECONDS = 0.5
# A name can be unknown, or a connection refused, for a moment; after so long somebody is gone.
LOST_SECONDS = 10.0


class Peers:
    """Some processes, by name, at addresses host:port; a thread asks each of them now and then."""

    def __init__(self, addresses: Mapping[str, str]):
        self._addresses = dict(addresses)
        self._answered = dict.fromkeys(addresses, math.inf)
        threading.Thread(target=self._ask, daemon=True, name="peers").start()

    def silent(self, name: str) -> float:
        """Seconds since the process last answered; 0 as long as it never has."""
        return max(0.0, time.monotonic() - self._answered[name])

    def _ask(self) -> None:
        while True:
            for name, address in self._addresses.items():
                if reachable(address):
                    self._answered[name] = time.monotonic()
            time.sleep(POLL_SECONDS)


def reachable(address: str) -> bool:
    """Whether anybody listens at `address`, host:port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2.0):
            return True
    except OSError:
        return False
