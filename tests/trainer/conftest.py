from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _threads():
    """The threads that a trainer's own process has: another number gives other bits."""
    from trainer import devices, quiet
    from trainer.cluster import Cluster

    quiet.import_tensorflow()
    devices.configure(1, Cluster())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Four classes of 8 by 8 grey images that a small network learns in seconds."""
    from trainer.data import prepare

    directory = tmp_path_factory.mktemp("data") / "tiny"
    prepare.run("synthetic:8x8x1:4:640", directory)
    return directory
