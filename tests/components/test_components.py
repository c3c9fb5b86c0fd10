import builtins
import dis
import inspect
import types
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from kfp.dsl.base_component import BaseComponent

import components
from components import component
from components.compare import compare
from components.detect_changes import detect_changes
from components.evaluate import evaluate
from components.notify import notify
from components.prepare_data import prepare_data
from components.promote import promote
from components.train import train

COMPONENTS = {
    "prepare_data": prepare_data,
    "train": train,
    "detect_changes": detect_changes,
    "evaluate": evaluate,
    "notify": notify,
    "compare": compare,
    "promote": promote,
}
GREETING = "hello"

each = pytest.mark.parametrize("component", COMPONENTS.values(), ids=COMPONENTS)


@component
def careless() -> str:
    """Uses what stays behind."""
    return GREETING


def test_every_file_is_one_component_of_its_name() -> None:
    folder = Path(components.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(COMPONENTS)


def test_the_image_is_of_this_version_and_named_as_the_local_runner_wants() -> None:
    assert components.IMAGE.endswith(f"python:{metadata.version('kfp-vision')}")


@each
def test_the_image_and_nothing_to_install(component: BaseComponent) -> None:
    container = component.component_spec.implementation.container
    assert container.image == components.IMAGE
    assert container.command[0] == "sh"
    assert "install" not in container.command[2]


@each
def test_defaults_are_left_to_the_pipelines(component: BaseComponent) -> None:
    for parameter in inspect.signature(component.python_func).parameters.values():
        assert parameter.default in (inspect.Parameter.empty, None)


@each
def test_every_input_and_output_says_what_it_is(component: BaseComponent) -> None:
    described = inspect.getdoc(component.python_func)
    for name in inspect.signature(component.python_func).parameters:
        assert f"    {name}: " in described


@each
def test_what_is_shipped_stands_alone(component: BaseComponent) -> None:
    assert missing(component) == set()


def test_what_does_not_stand_alone_is_found() -> None:
    assert missing(careless) == {"GREETING"}


def missing(component: BaseComponent) -> set[str]:
    """The global names that a component's shipped source reads and does not have."""
    shipped: dict[str, Any] = {}
    exec(component.component_spec.implementation.container.command[-1], shipped)
    return set(globals_read(shipped[component.python_func.__name__].__code__)) - set(shipped) - set(vars(builtins))


def globals_read(code: types.CodeType) -> Iterator[str]:
    yield from (i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from globals_read(constant)
