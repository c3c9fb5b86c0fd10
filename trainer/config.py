"""Every hyperparameter, once: its name, type, default, unit and the value that switches it off."""

import dataclasses
import difflib
import math
from collections.abc import Iterable
from typing import Any

from trainer.errors import UsageError

LARGEST = 2**63  # what a number has to stay below to reach TensorFlow


def knob(
    default: Any,
    doc: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    choices: tuple[str, ...] = (),
    aliases: dict[str, str] | None = None,
) -> Any:
    """A field of Config: what it means, and what it may be (bounds are inclusive)."""
    limits = {"doc": doc, "low": low, "high": high, "choices": choices, "aliases": aliases or {}}
    return dataclasses.field(default=default, metadata=limits)


@dataclasses.dataclass(frozen=True)
class Config:
    """How one model is trained.  A value out of range is refused at once, by name.

    Raises:
      UsageError: a field has the wrong type or a value it may not have.
    """

    # Length and pace
    train_epochs: int = knob(0, "passes over the training split; 0: by the number of examples", low=0)
    train_steps: int = knob(0, "stop after so many steps, whatever train_epochs says; 0: off", low=0)
    batch_size: int = knob(0, "examples per step, over all workers; 0: by the number of examples", low=0)
    seed: int = knob(1, "what weights, order and augmentation are drawn from", low=0, high=2**31 - 1)

    # Data
    image_size: int = knob(0, "pixels a side the model sees; 0: the data's own, at most 64", low=0, high=4096)
    crop_padding: int = knob(-1, "pixels around an image before the random crop; 0: no crop; -1: an eighth", low=-1)
    random_flip: str = knob("auto", "mirror half the images; auto: colour only", choices=("auto", "on", "off"))
    validation_fraction: float = knob(
        0.1, "share of train held out where the data has no validation split; 0: none", low=0.0, high=0.5
    )
    resident_gib: float = knob(4.0, "decoded images kept in memory up to this, GiB a machine; else read anew", low=0)

    # Model
    model: str = knob("cifar_resnet", "architecture, a name in trainer.models.MODELS")
    resnet_size: int = knob(20, "number of weighted layers; 6n+2 for cifar_resnet", low=1)
    conv_bias: bool = knob(False, "biases in the convolutions, as the 2019 trainers had")
    norm: str = knob("batch", "normalisation after each convolution", choices=("batch", "none"))
    norm_group: int = knob(0, "examples that share batch-norm statistics; 0: a replica's whole slice", low=0)
    norm_momentum: float = knob(0.9, "what a moving statistic keeps of itself in a step", low=0.0, high=1.0)
    norm_epsilon: float = knob(1e-5, "added to the variance", low=0.0)

    # Optimizer
    optimizer: str = knob("sgd", "update rule", choices=("sgd",))
    learning_rate: float = knob(0.1, "peak, for a batch of learning_rate_batch", low=0.0)
    learning_rate_batch: int = knob(128, "the rate is scaled by batch_size over this; 0: not scaled", low=0)
    momentum: float = knob(0.9, "of SGD; 0: off", low=0.0, high=1.0)
    schedule: str = knob(
        "cosine", "of the learning rate, a function of the step", choices=("constant", "step", "cosine")
    )
    warmup_epochs: float = knob(1.0, "linear rise from 0 to the peak; 0: off", low=0.0)
    decay_epochs: tuple[int, ...] = knob((), "schedule=step: multiply by decay_factor at each of these epochs", low=0)
    decay_factor: float = knob(0.1, "schedule=step: what the rate is multiplied by", low=0.0, high=1.0)
    weight_decay: float = knob(
        2e-4, "adds this times the sum of squares of kernels and biases to the loss; 0: off", low=0.0
    )
    label_smoothing: float = knob(0.0, "probability spread over all classes; 0: off", low=0.0, high=0.999)

    # Evaluation while training, and when to stop
    epochs_between_evals: int = knob(1, "epochs from one validation to the next", low=1)
    skip_eval: bool = knob(False, "never look at the validation split while training")
    early_stop_epochs: int = knob(0, "stop when eval_loss has not improved for so many epochs; 0: off", low=0)

    # Devices
    strategy: str = knob(
        "default",
        "how replicas share the work; default: by workers and devices",
        choices=("default", "off", "one_device", "mirrored", "multi_worker_mirrored"),
        aliases={"collective": "multi_worker_mirrored"},
    )
    dtype: str = knob(
        "auto",
        "of activations; weights are float32; auto: bf16 where the hardware computes in it",
        choices=("auto", "fp32", "bf16"),
        aliases={"float32": "fp32", "bfloat16": "bf16", "mixed_bfloat16": "bf16"},
    )
    steps_per_loop: int = knob(0, "steps in one call of the device; 0: as many as take about a second", low=0)

    # What is written
    log_steps: int = knob(100, "steps from one throughput line to the next", low=1)
    checkpoint_steps: int = knob(0, "steps from one checkpoint to the next; 0: whenever it costs little time", low=0)
    keep_checkpoints: int = knob(3, "newest checkpoints kept; with early_stop_epochs the best too", low=1)
    enable_tensorboard: bool = knob(False, "write TensorBoard summaries into the run directory")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            object.__setattr__(self, field.name, _checked(field, value))
        if list(self.decay_epochs) != sorted(set(self.decay_epochs)):
            raise UsageError(f"decay_epochs={self.decay_epochs}: must rise from one to the next")
        if self.schedule == "step" and not self.decay_epochs:
            raise UsageError("decay_epochs: schedule=step needs at least one epoch to decay at")


def override(config: Config, assignments: Iterable[str]) -> Config:
    """`config` with each "field=value" applied, the last one winning.

    Raises:
      UsageError: not an assignment, no such field, wrong type, out of range; names the field.
    """
    changes = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip()
        if not equals:
            raise UsageError(f"'{assignment}': an override is field=value")
        changes[name] = _parse(_field(name), text.strip())
    return dataclasses.replace(config, **changes)


def describe(config: Config) -> str:
    """One line a field, `name = value  # meaning`, in the order of the class."""
    rows = [(f"{f.name} = {shown(getattr(config, f.name))}", f) for f in dataclasses.fields(config)]
    width = max(len(left) for left, _ in rows) + 2
    return "\n".join(f"{left:{width}}# {_meaning(field)}" for left, field in rows)


def to_dict(config: Config) -> dict[str, Any]:
    """The fields as JSON has them."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(config).items()}


def from_dict(values: dict[str, Any]) -> Config:
    """The Config that `to_dict` gave `values` for; a field it lacks keeps its default.

    Raises:
      UsageError: no such field, or a value it may not have.
    """
    for name in values:
        _field(name)
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return Config(**fields)


def shown(value: Any) -> str:
    """A field's value as `override` reads it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _field(name: str) -> dataclasses.Field:
    fields = {f.name: f for f in dataclasses.fields(Config)}
    if name not in fields:
        close = difflib.get_close_matches(name, fields, n=1)
        hint = f"did you mean {close[0]}?" if close else "`python -m trainer recipes default` lists all"
        raise UsageError(f"no field '{name}'; {hint}")
    return fields[name]


def _meaning(field: dataclasses.Field) -> str:
    choices = field.metadata["choices"]
    return field.metadata["doc"] + (f" ({' · '.join(choices)})" if choices else "")


_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _parse(field: dataclasses.Field, text: str) -> Any:
    try:
        if field.type is bool:
            return _BOOLEANS[text.lower()]
        if field.type is str:
            return text
        if field.type in (int, float):
            return field.type(text)
        return tuple(int(part) for part in text.split(",") if part.strip())
    except (KeyError, ValueError):
        raise UsageError(f"{field.name}={text}: must be {_type_name(field)}") from None


def _checked(field: dataclasses.Field, value: Any) -> Any:
    limits = field.metadata
    if field.type is float and type(value) is int and abs(value) < LARGEST:
        value = float(value)
    if field.type in (bool, int, float, str):
        right = type(value) is field.type
    else:
        right = isinstance(value, tuple) and all(type(part) is int for part in value)
    if not right:
        raise UsageError(f"{field.name}={value!r}: must be {_type_name(field)}")
    if isinstance(value, str):
        value = limits["aliases"].get(value, value)
        if limits["choices"] and value not in limits["choices"]:
            raise UsageError(f"{field.name}={value}: must be one of {', '.join(limits['choices'])}")
        return value
    for part in value if isinstance(value, tuple) else (value,):
        if not limits["low"] <= part <= limits["high"] or abs(part) >= LARGEST:
            raise UsageError(f"{field.name}={part}: must be {_range(limits['low'], limits['high'])}")
    return value


def _range(low: float, high: float) -> str:
    if math.isinf(high):
        return "a finite number" if math.isinf(low) else f"at least {low:g}"
    return f"from {low:g} to {high:g}"


def _type_name(field: dataclasses.Field) -> str:
    names: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
    return names.get(field.type, "whole numbers with commas between")
