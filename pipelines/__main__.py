"""`python -m pipelines COMMAND`: parse, call, exit code."""

import json
from pathlib import Path

from absl import flags

from components import IMAGE
from pipelines import PIPELINES, compiling, packages, parameters, running
from pipelines.summary import summary
from trainer.commandline import Command, main
from trainer.errors import UsageError


def define_compile(values: flags.FlagValues) -> None:
    """The flags of `compile`."""
    flags.DEFINE_string("output", None, "the YAML file, or a directory to put NAME.yaml into", flag_values=values)
    flags.DEFINE_string("image", IMAGE, "the container image of every task", flag_values=values)
    flags.mark_flag_as_required("output", flag_values=values)


def compile_(values: flags.FlagValues, words: list[str]) -> None:
    """Writes one pipeline, or all."""
    output = _path("output", values.output)
    if len(words) > 1:
        raise UsageError(f"unexpected '{words[1]}'; compile takes one NAME, or none for all")
    if unknown := [name for name in words if name not in PIPELINES]:
        raise UsageError(f"no pipeline '{unknown[0]}'; there are {', '.join(PIPELINES)}")
    is_file = output.suffix in (".yaml", ".yml")
    if is_file and not words:
        raise UsageError(f"--output={output}: all pipelines go into a directory; give a NAME for one file")
    for name in words or PIPELINES:
        path = output if is_file else output / f"{name}.yaml"
        compiling.write(PIPELINES[name], path, values.image)
        print(path)


def define_run(values: flags.FlagValues) -> None:
    """The flags of `run`."""
    flags.DEFINE_multi_string("param", [], "a parameter, name=value; lists as JSON", flag_values=values)
    flags.DEFINE_string("root", "runs", "the directory that gets a folder for the run", flag_values=values)
    flags.DEFINE_bool("json", False, "print the outputs as JSON", flag_values=values)


def run(values: flags.FlagValues, words: list[str]) -> None:
    """Runs one pipeline here."""
    if len(words) != 1:
        raise UsageError(f"run takes one NAME or FILE.yaml; the names are {', '.join(PIPELINES)}")
    pipeline = packages.find(words[0])
    arguments = parameters.arguments(pipeline, values.param)
    outputs = running.run(pipeline, arguments, _path("root", values.root).absolute())
    if values.json:
        print(json.dumps(outputs, indent=1, sort_keys=True))
    elif outputs:
        print(summary(outputs))


def _path(flag: str, text: str) -> Path:
    if not text or "\0" in text:
        raise UsageError(f"--{flag}={text!r}: must be a path")
    return Path(text)


COMMANDS = {
    "compile": Command(
        "Write pipelines as the YAML that a cluster takes.",
        "python -m pipelines compile training --output=training.yaml",
        define_compile,
        compile_,
        "[NAME]",
    ),
    "run": Command(
        "Run a pipeline, or a compiled one, on this machine.",
        "python -m pipelines run training --param=dataset=digits --param=workers=2",
        define_run,
        run,
        "NAME|FILE.yaml",
    ),
}


if __name__ == "__main__":
    main("python -m pipelines", "Compile and run pipelines.", COMMANDS)
