"""What kfp's local runner and our handling of it add to a task, in seconds."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

TASKS = 8
CHAIN = f"""
from kfp import compiler, dsl
from components import component

@component
def nothing() -> None:
    '''Does nothing.'''

@dsl.pipeline(name="chain")
def chain() -> None:
    last = nothing()
    for _ in range({TASKS - 1}):
        last = nothing().after(last)

compiler.Compiler().compile(chain, "chain.yaml")
"""


@pytest.mark.long
def test_a_task_costs_less_than_a_second(tmp_path: Path) -> None:
    (tmp_path / "chain.py").write_text(CHAIN)
    subprocess.run([sys.executable, "chain.py"], cwd=tmp_path, check=True)
    began = time.monotonic()
    ran = subprocess.run([sys.executable, "-m", "pipelines", "run", "chain.yaml"], cwd=tmp_path, capture_output=True)
    seconds = (time.monotonic() - began) / TASKS
    assert ran.returncode == 0
    assert ran.stderr.count(b"nothing done in") == TASKS
    print(f"\nlocal runner: {seconds:.2f} s a task, start of the command included")
    assert seconds < 1
