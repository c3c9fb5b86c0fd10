"""One training run, from the cluster to the exported model."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from trainer import (
    actions,
    artifact,
    asynchronous,
    auto,
    devices,
    export,
    loop,
    models,
    pretrained,
    profiler,
    schedule,
    server,
    step,
    strategy,
)
from trainer.checkpoint import Checkpoints
from trainer.cluster import Cluster
from trainer.config import INCIDENTAL, Config, to_dict
from trainer.data import examples, input, noise
from trainer.data.dataset import DataSet, open_dataset
from trainer.data.examples import Examples
from trainer.errors import DataError, UsageError
from trainer.learner import Learner
from trainer.signals import StopSignal
from trainer.version import code_version

logger = logging.getLogger(__name__)

POLICIES = {"fp32": "float32", "bf16": "mixed_bfloat16", "fp16": "mixed_float16"}


def run(
    config: Config, data: Path, output: Path, *, cluster: Cluster, run_dir: Path | None = None, clean: bool = False
) -> dict[str, Any]:
    """Trains by `config` on the data set at `data`; returns the manifest of the model at `output`.

    Checkpoints and logs go to `run_dir`, by default `output` with `.run` added; from what
    is there already the run goes on.

    Raises:
      UsageError: a field does not fit the data, the cluster or the checkpoints.
      DataError: the data set is not what its manifest says, or cannot be trained on.
      NumericsError, StorageError, Preempted, Interrupted: as their classes say.
    """
    output = Path(output).absolute()
    run_dir = Path(run_dir or f"{output}.run").absolute()
    dataset = open_dataset(data, with_files=not config.use_synthetic_data)
    config = resolved(config, dataset)
    request = _request(config, dataset, cluster)
    if done := _already_there(output, request, clean=clean):
        return done
    if cluster.ps:
        asynchronous.check(config)
    if cluster.serves:
        devices.configure(config, cluster)
        return server.serve(cluster, output)
    checkpoints = Checkpoints(run_dir / "checkpoints", _identity(config, dataset), config.keep_checkpoints)
    if clean and cluster.chief:  # before the strategy, where the others wait
        checkpoints.clear()

    setup = set_up(config, dataset, cluster)
    state = _restore(config, checkpoints, setup.learner, setup.mean)
    _train(config, setup, state, cluster, checkpoints, run_dir)

    result = actions.result(config, state)
    manifest = _manifest(config, dataset, request, result)
    if not cluster.chief:
        return manifest
    if result["step"] != state.step:
        logger.info("epoch %s was best; its weights are exported", result["epoch"])
        setup.learner.assign(checkpoints.variables_of(result["step"]))
    weights = [variable.numpy() for variable in setup.learner.evaluated()]
    return export.write(output, manifest, config, weights, state.history, clean=clean)


class Setup(NamedTuple):
    """What a training consists of, before its first step."""

    replicas: tf.distribute.Strategy
    workers: asynchronous.Workers | None
    signal: StopSignal
    train: Examples
    validation: Examples | None
    plan: schedule.Plan
    learner: Learner
    mean: Callable[[float], float]


def set_up(config: Config, dataset: DataSet, cluster: Cluster) -> Setup:
    """Makes all that a resolved `config` names.

    The order is not free: a multi-worker strategy has to be made before any tensor.
    """
    devices.configure(config, cluster)
    replicas = strategy.create(config, cluster)
    workers = asynchronous.Workers(replicas, cluster) if cluster.ps else None
    signal = StopSignal()
    _check_batch(config, replicas.num_replicas_in_sync)
    kept = asynchronous.sendable(config, cluster) if workers else config
    train, validation = examples.load(dataset, kept, cluster.neighbours)
    _check_validation(config, validation)
    with replicas.scope():
        network = models.build(config, shape(config, dataset), len(dataset.class_names), POLICIES[config.dtype])
    models.adapt(network, config, train)
    pretrained.start(network, config, dataset.class_names)
    with replicas.scope():
        learner = Learner(config, network)
    plan = schedule.plan(config, len(train))
    return Setup(replicas, workers, signal, train, validation, plan, learner, loop.make_mean(replicas))


def _train(
    config: Config, setup: Setup, state: loop.State, cluster: Cluster, checkpoints: Checkpoints, run_dir: Path
) -> None:
    """Trains from `state` to the end of the plan, or until something stops it."""
    rates = schedule.learning_rates(config, setup.plan)
    after_each_call = [
        actions.record_epochs(config, setup.plan, rates, _validation(setup, config)),
        *(_of_the_chief(config, setup, checkpoints, state, run_dir) if cluster.chief else ()),
        actions.stop_on_signal(setup.signal),
    ]
    train_call = make_train_call(setup, rates, config, state.step)
    abreast = cluster.size if cluster.ps else 1
    with profiler.tracing(config, run_dir / "tensorboard", state, chief=cluster.chief) as tracing:
        loop.run(train_call, setup.plan, state, config, setup.mean, [*tracing, *after_each_call], abreast)
    if state.stopped and cluster.chief:
        logger.info("stopped: %s", state.stopped)


def make_train_call(setup: Setup, rates: list[float], config: Config, first_step: int) -> loop.TrainCall:
    """The loop's call of the device, at the rate `rates[step]`, with batches from `first_step` on."""
    train_step = step.make_train_step(setup.replicas, setup.learner, rates, config)
    if setup.workers:
        return setup.workers.make_train_call(train_step, setup.train, config)
    batches = input.training(setup.replicas, setup.train, config, first_step)
    return loop.make_train_call(setup.replicas, train_step, batches, config)


def _of_the_chief(
    config: Config, setup: Setup, checkpoints: Checkpoints, start: loop.State, run_dir: Path
) -> Iterator[loop.Action]:
    """What only the chief does after a call: it speaks and writes for all."""
    yield actions.report_progress(config, setup.plan, start)
    if config.enable_tensorboard:
        yield actions.write_summaries(run_dir / "tensorboard", config.batch_size, start)
    yield actions.record_times(config, setup.plan, run_dir)
    yield actions.save_checkpoints(config, setup.plan, checkpoints, setup.learner.values, setup.signal)


def resolved(config: Config, dataset: DataSet) -> Config:
    """`config` with all that is automatic decided for `dataset`."""
    if not dataset.splits.get("train"):
        raise DataError(f"{dataset.directory}: has no split 'train'; it has {', '.join(dataset.splits)}")
    return auto.resolve(
        config,
        examples=dataset.splits["train"],
        image_shape=dataset.image_shape,
        image_side=dataset.image_side_median,
        channel_means=dataset.channel_means,
        channel_deviations=dataset.channel_deviations,
        bfloat16=devices.computes_in_bfloat16(),
    )


def _request(config: Config, dataset: DataSet, cluster: Cluster) -> dict[str, Any]:
    """All that the bits of the model follow from."""
    data = {"digest": dataset.digest, "source": dataset.manifest["source"], "splits": dataset.splits}
    if config.use_synthetic_data:
        data = {"digest": "", "source": noise.SOURCE, "splits": {}}
    request = {"config": to_dict(config), "data": data, "code": code_version(), "workers": cluster.size}
    return {**request, "pretrained": pretrained.digest(config)}


def _identity(config: Config, dataset: DataSet) -> dict[str, Any]:
    kept = {name: value for name, value in to_dict(config).items() if name not in INCIDENTAL}
    return {**kept, "data_digest": dataset.digest, "pretrained_digest": pretrained.digest(config)}


def _already_there(output: Path, request: Mapping[str, Any], *, clean: bool) -> dict[str, Any] | None:
    if clean:
        return None
    there = artifact.there(output, "model", {name: value for name, value in request.items() if name != "config"})
    if there is None:
        return None
    wanted, found = request["config"], there["config"]
    differs = [name for name in wanted if name not in INCIDENTAL and found.get(name) != wanted[name]]
    if differs:
        shown = ", ".join(f"{name} was {found.get(name)}, is {wanted[name]}" for name in differs)
        raise UsageError(f"{output}: the model there is of another config ({shown}); {artifact.REMEDY}")
    logger.info("%s is already there", output)
    return there


def _check_batch(config: Config, replicas: int) -> None:
    share, rest = divmod(config.batch_size, replicas)
    if rest or not share:
        fitting = max(share, 1) * replicas
        raise UsageError(
            f"batch_size={config.batch_size}: must be a multiple of the {replicas} replicas, such as {fitting}"
        )
    if config.norm_group and share % config.norm_group:
        raise UsageError(
            f"norm_group={config.norm_group}: must divide a replica's share of the batch, {share} examples"
        )


def _check_validation(config: Config, validation: Examples | None) -> None:
    for field in ("early_stop_epochs", "stop_threshold"):
        if getattr(config, field) and validation is None:
            raise UsageError(
                f"{field}={getattr(config, field)}: there are no validation examples to stop by; "
                "set validation_fraction, and neither skip_eval nor use_synthetic_data"
            )


def shape(config: Config, dataset: DataSet) -> tuple[int, int, int]:
    """Height, width and channels of what the network sees."""
    return config.image_size, config.image_size, dataset.image_shape[2]


def _validation(setup: Setup, config: Config) -> Callable[[], tuple[float, float]] | None:
    if setup.validation is None:
        return None
    evaluate_step = step.make_evaluate_step(setup.learner, config)
    if setup.workers:
        return setup.workers.make_evaluate_call(evaluate_step, setup.validation, config)
    steps = input.evaluation_steps(setup.validation, config)
    batches = input.evaluation(setup.replicas, setup.validation, config)
    return loop.make_evaluate_call(setup.replicas, evaluate_step, batches, steps)


def _restore(config: Config, checkpoints: Checkpoints, learner: Learner, mean: Callable[[float], float]) -> loop.State:
    """The state to go on from, the learner set to it; a fresh one where there is no checkpoint."""
    state = loop.State()
    if found := checkpoints.restore():
        values, stored = found
        learner.assign(values)
        state = loop.State(**stored)
        logger.info("going on after step %d", state.step)
    with loop.lost_peers(state):
        # Also what is incidental: it may change which calls a worker makes, and all must make the same.
        if not _all_have(json.dumps([to_dict(config), checkpoints.identity], sort_keys=True), mean):
            raise UsageError("the workers differ in Config, data or precision; give all the same --data and --set")
        if not _all_have(str(state.step), mean):
            raise UsageError(f"{checkpoints.directory}: not the same for all workers; --run_dir must be shared by all")
    return state


def _all_have(text: str, mean: Callable[[float], float]) -> bool:
    """Whether every worker calls this with the same text, by the mean and the spread of a digest."""
    mark = int(hashlib.sha256(text.encode()).hexdigest()[:6], 16)
    middle = mean(float(mark))
    return mean((mark - middle) ** 2) == 0.0


def _manifest(config: Config, dataset: DataSet, request: Mapping[str, Any], result: Mapping) -> dict[str, Any]:
    return {
        **request,
        "class_names": list(dataset.class_names),
        "image_shape": list(shape(config, dataset)),
        "seed": config.seed,
        "metrics": {name: value for name, value in result.items() if value is not None},
    }
