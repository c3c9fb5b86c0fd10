import re
import shlex

import pytest

from trainer import __main__ as command_line
from trainer.config import Config
from trainer.errors import UsageError
from trainer.recipes import RECIPES, recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_complete_config_of_its_own_name(name):
    assert isinstance(recipe(name), Config)
    assert RECIPES[name].__name__ == name
    assert recipe(name) == recipe(name)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_in_its_first_line_what_it_is_for(name):
    first = RECIPES[name].__doc__.splitlines()[0]
    assert first.endswith(".")
    assert len(first) <= 100


def test_no_name_is_the_default():
    assert recipe("") == recipe("default") == Config()


@pytest.mark.parametrize("name", ["Default", "resnet", "cifar10", " "])
def test_an_unknown_recipe_is_refused_with_those_there_are(name):
    with pytest.raises(UsageError) as caught:
        recipe(name)
    assert str(caught.value).startswith(f"no recipe '{name}'")
    assert all(known in str(caught.value) for known in RECIPES)


def test_the_cifar_recipes_are_the_papers_and_differ_in_size_alone():
    small, large = recipe("cifar10_resnet20"), recipe("cifar10_resnet56")
    assert (small.resnet_size, large.resnet_size) == (20, 56)
    for made in (small, large):
        assert (made.train_epochs, made.batch_size, made.learning_rate, made.momentum) == (182, 128, 0.1, 0.9)
        assert (made.schedule, made.decay_epochs, made.decay_factor) == ("step", (91, 136, 182), 0.1)
        assert (made.weight_decay, made.norm_momentum, made.norm_epsilon) == (2e-4, 0.997, 1e-5)
        assert (made.image_size, made.crop_padding, made.random_flip) == (32, 4, "on")


@pytest.mark.parametrize("name", RECIPES)
def test_the_commands_in_a_docstring_parse(name):
    for words in re.findall(r"^ *python -m trainer (.+)$", RECIPES[name].__doc__, flags=re.MULTILINE):
        command, *given = shlex.split(words)
        values = command_line.flags.FlagValues()
        command_line.COMMANDS[command].define(values)
        values([command, *given])
        if command == "train":
            assert values.recipe == name
