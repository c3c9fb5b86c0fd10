"""A pipeline on this machine, through kfp's local runner."""

import contextlib
import json
import logging
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from kfp import dsl, local
from kfp.local import pipeline_orchestrator, subprocess_task_handler
from kfp.pipeline_spec.pipeline_spec_pb2 import ComponentInputsSpec, ParameterType, PipelineSpec

from pipelines import PIPELINES
from pipelines.tasks import Tasks
from trainer.config import override
from trainer.errors import Interrupted, Preempted, RunFailed, StorageError, UsageError
from trainer.recipes import recipe

TYPES: dict[int, tuple[type, str]] = {
    ParameterType.NUMBER_INTEGER: (int, "a whole number"),
    ParameterType.NUMBER_DOUBLE: (float, "a number"),
    ParameterType.BOOLEAN: (bool, "true or false"),
    ParameterType.LIST: (list, """a JSON list, such as '["train_epochs=3"]'"""),
    ParameterType.STRUCT: (dict, """a JSON object, such as '{"name": "value"}'"""),
}


# Ours, also from a file: another pipeline's `recipe` may be anything.
TRAINING = ("training", "train")


def find(name: str) -> PipelineSpec:
    """The pipeline of a name, or the compiled one in a YAML file.

    Raises:
      UsageError: no such pipeline or file, or the file does not hold one.
    """
    if name in PIPELINES:
        return PIPELINES[name].pipeline_spec
    if not name.endswith((".yaml", ".yml")):
        raise UsageError(f"no pipeline '{name}'; there are {', '.join(PIPELINES)}; a compiled one is FILE.yaml")
    if not os.path.isfile(name):
        raise UsageError(f"{name}: no such file; `python -m pipelines compile` writes one")
    try:
        # A second document is for the cluster alone: volumes, secrets, node selectors.
        content = next(yaml.safe_load_all(Path(name).read_text(encoding="utf-8")), None)
        spec = json_format.ParseDict(content or {}, PipelineSpec())
    except (yaml.YAMLError, json_format.ParseError, UnicodeDecodeError, TypeError) as error:
        raise UsageError(f"{name}: not a compiled pipeline: {error}") from error
    if not spec.root.dag.tasks:
        raise UsageError(f"{name}: not a compiled pipeline: it has no tasks")
    return spec


def arguments(pipeline: PipelineSpec, assignments: Sequence[str]) -> dict[str, Any]:
    """What each "name=value" gives a parameter of `pipeline`, in the type that it declares.

    Raises:
      UsageError: not an assignment, no such parameter, a value of another type, or a
        parameter without a default is missing; names it, and those there are.
    """
    inputs = pipeline.root.input_definitions
    given = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--param={assignment}: must be name=value; {_parameters(inputs)}")
        if name not in inputs.parameters:
            raise UsageError(f"no parameter '{name}'; {_parameters(inputs)}")
        given[name] = _value(name, text, inputs.parameters[name].parameter_type)
    missing = [name for name, p in inputs.parameters.items() if not p.is_optional and name not in given]
    if missing:
        raise UsageError(f"--param={missing[0]}=… is missing; {_parameters(inputs)}")
    if pipeline.pipeline_info.name in TRAINING:
        _check_training(given)
    return given


def run(pipeline: PipelineSpec, arguments: dict[str, Any], root: Path) -> dict[str, Any]:
    """Runs a pipeline, its tasks' artifacts under `root`, and returns its outputs by name.

    An output is a parameter's value or an artifact's path.

    Raises:
      RunFailed: a task failed; its own word on why.
      Interrupted, Preempted: a signal came; the tasks have ended.
      StorageError: nothing can be written at `root`.
    """
    root.mkdir(parents=True, exist_ok=True)
    if not os.access(root, os.W_OK):
        raise StorageError(f"{root}: not writable; give another --root")
    tasks = Tasks()
    with _silent(), _passing_signals_on(tasks), _in_charge(tasks):
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=os.fspath(root))
        try:
            outputs = pipeline_orchestrator.run_local_pipeline(pipeline, arguments)
        except RuntimeError as error:
            if tasks.stopped_by is None and not tasks.failures:
                raise RunFailed(str(error)) from error
            outputs = None
    if tasks.stopped_by is not None:
        kind = Interrupted if tasks.stopped_by == signal.SIGINT else Preempted
        raise kind(f"stopped by {signal.Signals(tasks.stopped_by).name}{_resuming(pipeline, arguments)}")
    if outputs is None:
        raise RunFailed(tasks.failures[-1])
    return {name: value.path if isinstance(value, dsl.Artifact) else value for name, value in outputs.items()}


def _resuming(pipeline: PipelineSpec, arguments: dict[str, Any]) -> str:
    if "run_dir" not in pipeline.root.input_definitions.parameters:
        return ""
    if arguments.get("run_dir"):
        return "; the same command goes on from its last checkpoint"
    return "; with --param=run_dir=DIR a run goes on from where the one before it stopped"


def _parameters(inputs: ComponentInputsSpec) -> str:
    names = [f"{name}{'' if p.is_optional else ' (required)'}" for name, p in sorted(inputs.parameters.items())]
    return f"there are {', '.join(names)}" if names else "there are none"


def _value(name: str, text: str, parameter_type: int) -> Any:
    if parameter_type not in TYPES:
        return text
    wanted, meaning = TYPES[parameter_type]
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise UsageError(f"--param={name}={text}: must be {meaning}")
    return value


def _check_training(given: dict[str, Any]) -> None:
    """Refuses now what `train` would refuse after the data has been prepared."""
    overrides = given.get("overrides", [])
    if not all(isinstance(assignment, str) for assignment in overrides):
        raise UsageError(f'--param=overrides={json.dumps(overrides)}: must be a list of "field=value"')
    override(recipe(given.get("recipe", "")), overrides)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps kfp's log, rules and warnings from the screen; what the tasks say goes another way."""
    logging.disable()
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _passing_signals_on(tasks: Tasks) -> Iterator[None]:
    """Lets a running task end by itself, its work saved, when this process is asked to."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: tasks.stop(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _in_charge(tasks: Tasks) -> Iterator[None]:
    """Starts kfp's tasks through `tasks`; kfp has no other place to say so."""
    theirs = subprocess_task_handler.SubprocessTaskHandler
    subprocess_task_handler.SubprocessTaskHandler = tasks.handler()
    try:
        yield
    finally:
        subprocess_task_handler.SubprocessTaskHandler = theirs
