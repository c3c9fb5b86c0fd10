"""What a finished run says: how good, where, and what to type next."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def summary(outputs: Mapping[str, Any]) -> str:
    """A few lines on the outputs of a run, which are paths and values by name."""
    lines = []
    if "evaluation" in outputs:
        lines.append(accuracy(Path(outputs["evaluation"])))
    width = max(map(len, outputs), default=0) + 2
    for name, value in outputs.items():
        page = Path(outputs["evaluation"], "report.html") if name == "report" and "evaluation" in outputs else value
        lines.append(f"{name:{width}}{page}")
    if "model" in outputs:
        lines += ["", "next:", f"  python -m trainer predict --model={outputs['model']} IMAGE…"]
    return "\n".join(lines)


def accuracy(evaluation: Path) -> str:
    """The headline of an evaluation."""
    measured = json.loads((evaluation / "metrics.json").read_text())
    number = measured["accuracy_top_1"]
    return (
        f"{measured['split']} accuracy {number['value']:.4f}"
        f" (95 % interval {number['low']:.4f} to {number['high']:.4f}, {number['n']:,} images)"
    )
