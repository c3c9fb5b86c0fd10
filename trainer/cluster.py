"""Which workers there are and which of them this process is.

Standard library only: a wrong description is refused before TensorFlow is imported.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from trainer.errors import UsageError

HOST = re.compile(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The addresses (host:port) of all workers in order, and this one's place among them.

    Worker 0 is the chief: it alone writes checkpoints, logs and the model.
    No addresses: a single process on its own.
    """

    workers: tuple[str, ...] = ()
    index: int = 0

    @property
    def size(self) -> int:
        """Number of workers, at least 1."""
        return max(1, len(self.workers))

    @property
    def chief(self) -> bool:
        """Whether this worker writes for all."""
        return self.index == 0

    @property
    def neighbours(self) -> int:
        """Workers on this one's host, itself among them: they share its cores."""
        if not self.workers:
            return 1
        host = _host(self.workers[self.index])
        return sum(_host(worker) == host for worker in self.workers)


def read(
    environ: Mapping[str, str], worker_hosts: str = "", task_index: int | None = None, expected_workers: int = 0
) -> Cluster:
    """The cluster of TF_CONFIG, else of the two flags, else this process alone.

    `worker_hosts` is a comma list of host:port; `expected_workers` > 0 must be the size.

    Raises:
      UsageError: names the field of TF_CONFIG or the flag that is wrong.
    """
    cluster = _from_tf_config(environ["TF_CONFIG"]) if "TF_CONFIG" in environ else _from_flags(worker_hosts, task_index)
    if expected_workers and cluster.size != expected_workers:
        found = (
            "TF_CONFIG and --worker_hosts describe" if cluster.workers else "no TF_CONFIG or --worker_hosts: there is"
        )
        raise UsageError(f"--expected_workers={expected_workers}: {found} {cluster.size}")
    return cluster


def to_tf_config(workers: tuple[str, ...], index: int) -> str:
    """The TF_CONFIG of worker `index`, as `read` takes it."""
    return json.dumps({"cluster": {"worker": list(workers)}, "task": {"type": "worker", "index": index}})


def _from_flags(worker_hosts: str, task_index: int | None) -> Cluster:
    workers = tuple(part.strip() for part in worker_hosts.split(",") if part.strip())
    if not workers:
        if task_index not in (None, -1):
            raise UsageError(f"--task_index={task_index}: needs --worker_hosts")
        return Cluster()
    _check_addresses(workers, "--worker_hosts")
    if task_index in (None, -1):
        if len(workers) > 1:
            raise UsageError(f"--task_index: missing; --worker_hosts names {len(workers)} workers")
        task_index = 0
    _check_index(task_index, len(workers), "--task_index")
    return Cluster(workers, task_index)


def _from_tf_config(text: str) -> Cluster:
    try:
        described = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"TF_CONFIG: not JSON: {error}") from None
    described = _typed(described, dict, "TF_CONFIG")
    jobs = _typed(described.get("cluster", {}), dict, "TF_CONFIG: cluster")
    if not jobs:
        raise UsageError("TF_CONFIG: has no cluster; unset it to train alone")
    addresses = {job: tuple(_typed(hosts, list, f"TF_CONFIG: cluster.{job}")) for job, hosts in jobs.items()}
    for job in addresses:
        if job not in ("chief", "worker", "evaluator"):
            raise UsageError(f"TF_CONFIG: cluster.{job}: the jobs here are chief and worker")
    chiefs = addresses.get("chief", ())
    if len(chiefs) > 1:
        raise UsageError(f"TF_CONFIG: cluster.chief: {len(chiefs)} chiefs, there can be one")
    workers = chiefs + addresses.get("worker", ())
    if not workers:
        raise UsageError("TF_CONFIG: cluster.worker: missing")
    _check_addresses(workers, "TF_CONFIG: cluster")
    task = _typed(described.get("task"), dict, "TF_CONFIG: task")
    job, index = task.get("type"), task.get("index")
    trained_by = [job for job in ("chief", "worker") if addresses.get(job)]
    if job not in trained_by:
        raise UsageError(f"TF_CONFIG: task.type={job!r}: must be {' or '.join(trained_by)}")
    if isinstance(index, str) and index.isdecimal():
        index = int(index)
    _check_index(index, len(addresses[job]), "TF_CONFIG: task.index")
    return Cluster(workers, index + (len(chiefs) if job == "worker" else 0))


def _typed(value: Any, kind: type, field: str) -> Any:
    if not isinstance(value, kind):
        wanted = "an object" if kind is dict else "a list"
        raise UsageError(f"{field}: must be {wanted}, is {json.dumps(value)}")
    return value


def _check_index(index: Any, count: int, field: str) -> None:
    if type(index) is not int or not 0 <= index < count:
        raise UsageError(f"{field}={index!r}: must be a whole number from 0 to {count - 1}")


def _check_addresses(workers: tuple[Any, ...], field: str) -> None:
    for worker in workers:
        host, colon, port = str(worker).rpartition(":")
        if not isinstance(worker, str) or not HOST.fullmatch(host) or not colon or not port.isdecimal():
            raise UsageError(f"{field}: {worker!r}: must be host:port")
        if not 1 <= int(port) <= 65535:
            raise UsageError(f"{field}: {worker!r}: the port must be from 1 to 65535")
    if len(set(workers)) != len(workers):
        twice = next(worker for worker in workers if workers.count(worker) > 1)
        raise UsageError(f"{field}: {twice} is there twice")


def _host(address: str) -> str:
    return address.rpartition(":")[0]
