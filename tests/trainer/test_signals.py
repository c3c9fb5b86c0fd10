import signal
import subprocess
import sys
import time

import pytest

from trainer.errors import Interrupted, Preempted

# Says when it listens, then works until a signal is noticed, as the loop does.
WORKER = """
import sys, time
from trainer.signals import StopSignal
signal = StopSignal()
print("listening", flush=True)
while not signal.received:
    time.sleep(0.01)
print("noticed", signal.received, flush=True)
time.sleep(float(sys.argv[1]))
error = signal.error(1200)
print(type(error).__name__, error.exit_code, error, flush=True)
"""


@pytest.fixture
def worker():
    started = []

    def start(seconds: float) -> subprocess.Popen:
        program = [sys.executable, "-c", WORKER, str(seconds)]
        started.append(subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "listening\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "kind", "code"), [(signal.SIGTERM, Preempted, 143), (signal.SIGINT, Interrupted, 130)]
)
def test_a_signal_is_remembered_and_the_work_goes_on(worker, number, kind, code):
    process = worker(0)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert out == (
        f"noticed {int(number)}\n{kind.__name__} {code} "
        f"stopped by {number.name} after step 1200; the same command, without --clean, goes on\n"
    )
    assert (err, process.returncode) == ("", 0)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(worker, first, second):
    process = worker(60)
    process.send_signal(first)
    assert process.stdout.readline() == f"noticed {int(first)}\n"
    began = time.monotonic()
    process.send_signal(second)
    assert process.wait(timeout=20) == 128 + second
    assert time.monotonic() - began < 5
    assert process.stdout.read() == ""
