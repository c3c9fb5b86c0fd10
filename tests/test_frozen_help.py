"""The command line, frozen: what each command's help says is in golden_help.txt."""

import os
import subprocess
import sys
from pathlib import Path

import pipelines.__main__ as pipelines_program
import trainer.__main__ as trainer_program

GOLDEN = Path(__file__).with_name("golden_help.txt")
PROGRAMS = {"trainer": trainer_program, "pipelines": pipelines_program}


def shown() -> str:
    """The help of both programs and each of their commands, from real processes."""
    parts = []
    for name, program in PROGRAMS.items():
        for command in ["", *program.COMMANDS]:
            words = [*command.split(), "--help"]
            environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
            done = subprocess.run(
                [sys.executable, "-m", name, *words],
                capture_output=True,
                encoding="utf-8",
                env=environment,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, ""), f"{name} {words}: {done.stderr}"
            parts.append(f"$ python -m {name} {' '.join(words)}\n{done.stdout}")
    return "\n".join(parts)


def test_the_help_of_every_command_is_the_golden_one():
    assert shown() == GOLDEN.read_text(encoding="utf-8"), (
        "the command line has changed; where that is meant, `make golden` writes tests/golden_help.txt anew, "
        "and its difference belongs to the same commit"
    )


if __name__ == "__main__":
    GOLDEN.write_text(shown(), encoding="utf-8")
