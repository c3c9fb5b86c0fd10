"""Schedule files for tests, and whether a server has what one says."""

import json
from pathlib import Path

from pipelines import scheduling
from pipelines.schedule_file import Schedule
from pipelines.server import Server
from tests.pipelines.kfp_server import QUICK, KfpServer

NAME = "nightly"


def write(directory: Path, **changes: object) -> str:
    fields = {"name": NAME, "pipeline": "training", "parameters": {"dataset": "digits"}, "cron": "0 3 * * *"}
    path = directory / f"{len(list(directory.iterdir()))}.yaml"
    path.write_text(json.dumps({name: value for name, value in {**fields, **changes}.items() if value is not None}))
    return str(path)


def is_right(kfp: KfpServer, wanted: Schedule) -> bool:
    """Whether exactly one is enabled, and says what the file says."""
    return len(kfp.enabled(NAME)) == 1 and not scheduling.plan(Server(kfp.host, QUICK), wanted).changes()
