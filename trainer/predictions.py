"""What a model says of the examples of one split: the evidence behind every number."""

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class Predictions:
    """n examples in the data set's order, K classes in the data set's order.

    label int32 [n], probabilities float32 [n, K], id and name str [n].
    """

    label: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    id: NDArray[np.str_]
    name: NDArray[np.str_]

    def save(self, file: Path) -> None:
        """Writes an .npz with one array a field; the same predictions give the same bytes."""
        np.savez_compressed(file, **dataclasses.asdict(self))

    def confident_mistakes(self, limit: int) -> list[int]:
        """Positions of at most `limit` wrong answers, the most confident first."""
        answer = self.probabilities.argmax(axis=1)
        wrong = np.flatnonzero(answer != self.label)
        order = np.argsort(-self.probabilities[wrong, answer[wrong]], kind="stable")
        return [int(position) for position in wrong[order][:limit]]
