"""What a test reads of a process that it started."""

import subprocess

import pytest


def until(process: subprocess.Popen, words: str) -> str:
    """The first line that holds `words`, of what `process` says on stderr."""
    said = []
    for line in process.stderr:
        said.append(line)
        if words in line:
            return line
    pytest.fail("".join(said))
