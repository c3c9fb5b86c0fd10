import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _threads():
    """The threads that a trainer's own process has: another number gives other bits."""
    from trainer import devices, quiet
    from trainer.cluster import Cluster
    from trainer.config import Config

    quiet.import_tensorflow()
    devices.configure(Config(), Cluster())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Four classes of 8 by 8 grey images that a small network learns in seconds."""
    from trainer.data import prepare

    directory = tmp_path_factory.mktemp("data") / "tiny"
    prepare.run("synthetic:8x8x1:4:640", directory)
    return directory


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this process may not mount a tmpfs")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture
def start_program() -> Iterator:
    """A function (source, first line, *words) → the process of a program that has said that line; killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(source: str, first_line: str, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", source, *words]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == f"{first_line}\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
