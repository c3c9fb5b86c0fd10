"""Several workers on this machine, each a process, that live and end together."""

import contextlib
import logging
import math
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO

from trainer import cluster
from trainer.errors import Interrupted, Preempted, TrainerError

logger = logging.getLogger(__name__)

PROGRAM = "python -m trainer"
GRACE_SECONDS = 20.0


def run(command: Sequence[str], workers: int) -> None:
    """Runs `python -m trainer COMMAND` as `workers` processes of one cluster, until all have ended.

    Their lines go to stderr, each with its worker in front.  When one fails, the others are
    ended; a SIGTERM or SIGINT here is passed on.

    Raises:
      TrainerError: with the words and the exit code of the worker that failed first.
    """
    addresses = tuple(f"127.0.0.1:{port}" for port in _free_ports(workers))
    logger.info("starting %d workers: %s", workers, ", ".join(addresses))
    last_words: dict[int, str] = {}
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    processes: list[subprocess.Popen[str]] = []
    with _passing_signals_on(processes) as received:
        try:
            for index in range(workers):
                processes.append(_start(command, addresses, index))
                listener = threading.Thread(target=_listen, args=(processes, index, last_words, ended), daemon=True)
                listener.start()
            failed = _first_failure(processes, ended, received)
        finally:
            _end(processes, 0.0 if received else GRACE_SECONDS)
    if received:
        name = signal.Signals(received[0]).name
        kind = Interrupted if received[0] == signal.SIGINT else Preempted
        raise kind(f"stopped by {name}; the same command, without --clean, goes on")
    if failed is not None:
        raise _error(failed, processes[failed].returncode, last_words.get(failed, ""))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _start(command: Sequence[str], addresses: tuple[str, ...], index: int) -> subprocess.Popen[str]:
    environment = os.environ | {"TF_CONFIG": cluster.to_tf_config(addresses, index), "PYTHONUNBUFFERED": "1"}
    program = [sys.executable, "-m", "trainer", *command, f"--expected_workers={len(addresses)}"]
    # A session of its own: Ctrl-C reaches the worker once, from here.
    return subprocess.Popen(
        program,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def _listen(
    processes: Sequence[subprocess.Popen[str]], index: int, last_words: dict[int, str], ended: queue.SimpleQueue[int]
) -> None:
    stream: IO[str] = processes[index].stderr  # type: ignore[assignment]
    for line in stream:
        if line.startswith(f"{PROGRAM}: "):
            last_words[index] = line.removeprefix(f"{PROGRAM}: ").strip()
        else:
            print(f"[worker {index}] {line}", end="", file=sys.stderr, flush=True)
    processes[index].wait()
    ended.put(index)


def _first_failure(
    processes: Sequence[subprocess.Popen[str]], ended: queue.SimpleQueue[int], received: Sequence[int]
) -> int | None:
    """The worker that failed first; None when all ended well, or the grace after a signal is over."""
    left = len(processes)
    deadline = math.inf
    while left and time.monotonic() < deadline:
        if received and deadline == math.inf:
            deadline = time.monotonic() + GRACE_SECONDS
        with contextlib.suppress(queue.Empty):
            index = ended.get(timeout=0.2)
            left -= 1
            if processes[index].returncode != 0 and not received:
                return index
    return None


def _end(processes: Sequence[subprocess.Popen[str]], grace: float) -> None:
    """Ends what still runs: asks, and after `grace` seconds kills."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + grace
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _passing_signals_on(processes: Sequence[subprocess.Popen[str]]) -> Iterator[list[int]]:
    """Passes SIGTERM and SIGINT on to the processes; yields the list of those that came."""
    received: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _error(index: int, code: int, words: str) -> TrainerError:
    if code < 0:
        return Preempted(f"worker {index} was ended by {signal.Signals(-code).name}")
    kinds = {kind.exit_code: kind for kind in TrainerError.__subclasses__()}
    return kinds.get(code, TrainerError)(words or f"worker {index} ended with exit code {code}")
