"""Starting a training: in this process, or as several that are seen through."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer import artifact, cluster, quiet
from trainer.config import override
from trainer.data.dataset import open_dataset
from trainer.errors import UsageError
from trainer.launch import local
from trainer.recipes import recipe as named


def train(
    data: Path,
    output: Path,
    *,
    recipe: str = "",
    overrides: Sequence[str] = (),
    workers: int = 1,
    run_dir: Path | None = None,
    clean: bool = False,
    worker_hosts: str = "",
    task_index: int | None = None,
    expected_workers: int = 0,
) -> dict[str, Any]:
    """Trains a model by `recipe` with `overrides`, and returns its manifest.

    With `workers` > 1, or strategy=parameter_server, so many local workers share the cores of
    this machine.  Otherwise this process is the one that TF_CONFIG, or `worker_hosts` and
    `task_index`, say it is.

    Raises:
      TrainerError: as trainer.train.run; of the first worker that failed.
    """
    config = override(named(recipe), overrides)
    here = cluster.read(os.environ, worker_hosts, task_index, expected_workers, config.strategy)
    if workers < 1:
        raise UsageError(f"--workers={workers}: must be at least 1")
    if workers > 1 and here.workers:
        raise UsageError(f"--workers={workers}: starts workers of its own; unset TF_CONFIG and --worker_hosts")
    if workers > 1 or (config.strategy == "parameter_server" and not here.workers):
        members = local.members(workers, config.strategy)
        cluster.check_strategy(members[0], config.strategy)
        open_dataset(data)
        command = ["train", f"--data={data}", f"--output={output}", f"--recipe={recipe}"]
        command += [f"--set={assignment}" for assignment in overrides]
        command += [f"--run_dir={run_dir}"] * bool(run_dir) + ["--clean"] * clean
        local.run(command, members)
        return artifact.read_manifest(Path(output), "model")
    quiet.import_tensorflow()
    from trainer import train as training

    return training.run(config, Path(data), Path(output), cluster=here, run_dir=run_dir, clean=clean)
