import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def recorded() -> Callable[[Path], dict[str, Any]]:
    """What kfp keeps of an artifact beside its content: its metadata."""

    def metadata(artifact: Path) -> dict[str, Any]:
        outputs = json.loads(artifact.with_name("executor_output.json").read_text())
        return outputs["artifacts"][artifact.name]["artifacts"][0]["metadata"]

    return metadata
