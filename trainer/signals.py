"""SIGTERM and SIGINT as a question that the loop asks, not as a death in the middle of a step."""

import os
import signal
from types import FrameType

from trainer.errors import Interrupted, Preempted


class StopSignal:
    """Remembers the first SIGTERM or SIGINT; a second ends the process at once.

    Install it after the strategy: a multi-worker strategy replaces what was there before,
    and would swallow SIGTERM.
    """

    def __init__(self) -> None:
        self.received = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = number

    def error(self, step: int) -> Preempted | Interrupted:
        """What to end with, after the work of `step` steps was saved."""
        kind = Interrupted if self.received == signal.SIGINT else Preempted
        name = signal.Signals(self.received).name
        return kind(f"stopped by {name} after step {step}; the same command, without --clean, goes on")
