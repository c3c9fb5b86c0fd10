"""What a model's probabilities are worth: numbers, and how sure they are.

A new metric is one function and one entry in METRICS.  A metric takes `labels` int [n] and
`probabilities` float [n, K], n ≥ 1, and returns what goes into metrics.json under its name,
or None where it means nothing for this many classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sklearn.metrics
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[Any]
Number = dict[str, Any]

CONFIDENCE = 0.95
RESAMPLES = 1000
SMALLEST_PROBABILITY = float(np.finfo(np.float32).eps)


def rate(successes: int, n: int) -> Number:
    """A share of `n` examples with its Wilson score interval (Wilson 1927)."""
    interval = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return {"value": successes / n, "low": float(interval.low), "high": float(interval.high), "n": n}


def bootstrapped(statistic: Callable[..., float], *columns: Array) -> Number:
    """A statistic of examples with its percentile bootstrap interval (Efron 1979), always drawn from one seed.

    `columns` hold a value an example each; one example has no interval: None.
    """
    n = len(columns[0])
    number = {"value": float(statistic(*columns)), "low": None, "high": None, "n": n}
    if n == 1:
        return number
    found = stats.bootstrap(
        columns,
        statistic,
        paired=True,
        vectorized=False,
        n_resamples=RESAMPLES,
        batch=max(1, 1_000_000 // n),  # resamples in memory at a time
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    interval = found.confidence_interval
    return {**number, "low": float(interval.low), "high": float(interval.high)}


def accuracy_top_1(labels: Array, probabilities: Array) -> Number:
    """The share of examples whose most probable class is the right one."""
    right = sklearn.metrics.accuracy_score(labels, probabilities.argmax(axis=1), normalize=False)
    return rate(int(right), len(labels))


def accuracy_top_5(labels: Array, probabilities: Array) -> Number | None:
    """The share of examples whose right class is among the five most probable.

    With five classes or fewer it says nothing: None.
    """
    classes = probabilities.shape[1]
    if classes <= 5:
        return None
    right = sklearn.metrics.top_k_accuracy_score(labels, probabilities, k=5, normalize=False, labels=range(classes))
    return rate(int(right), len(labels))


def log_loss(labels: Array, probabilities: Array) -> Number:
    """The mean of −ln(probability of the right class), in nats.

    A probability below float32's 1.2e-7 counts as that, or one example could make the mean infinite.
    """
    right = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return bootstrapped(np.mean, -np.log(np.clip(right, SMALLEST_PROBABILITY, 1.0)))


def macro_precision(labels: Array, probabilities: Array) -> Number:
    """The mean precision of the classes that have examples."""
    return _macro(labels, probabilities, lambda right, support, predicted: right / np.maximum(predicted, 1))


def macro_recall(labels: Array, probabilities: Array) -> Number:
    """The mean recall of the classes that have examples."""
    return _macro(labels, probabilities, lambda right, support, predicted: right / support)


def macro_f1(labels: Array, probabilities: Array) -> Number:
    """The mean F1 of the classes that have examples."""
    return _macro(labels, probabilities, lambda right, support, predicted: 2 * right / (support + predicted))


METRICS: dict[str, Callable[[Array, Array], Number | None]] = {
    "accuracy_top_1": accuracy_top_1,
    "accuracy_top_5": accuracy_top_5,
    "log_loss": log_loss,
    "macro_precision": macro_precision,
    "macro_recall": macro_recall,
    "macro_f1": macro_f1,
}


LOWER_IS_BETTER = frozenset({"log_loss"})


def headline(labels: Array, probabilities: Array) -> dict[str, Number]:
    """Every metric of METRICS that means something here, by name."""
    numbers = {name: metric(labels, probabilities) for name, metric in METRICS.items()}
    return {name: number for name, number in numbers.items() if number is not None}


def per_class(labels: Array, probabilities: Array, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and support of each class, in the order of `class_names`.

    A number that does not exist is None: all three of a class without an example, the precision
    of a class that was never predicted.
    """
    classes = range(len(class_names))
    columns = sklearn.metrics.precision_recall_fscore_support(
        labels, probabilities.argmax(axis=1), labels=classes, zero_division=np.nan
    )
    rows = []
    for name, precision, recall, f1, support in zip(class_names, *columns, strict=True):
        numbers = {"precision": precision, "recall": recall, "f1": f1}
        known = {key: float(v) if support and np.isfinite(v) else None for key, v in numbers.items()}
        rows.append({"class": name, "support": int(support), **known})
    return rows


def confusion_matrix(labels: Array, probabilities: Array) -> list[list[int]]:
    """Counts of examples [K, K]: a row is the true class, a column the predicted one."""
    classes = range(probabilities.shape[1])
    return sklearn.metrics.confusion_matrix(labels, probabilities.argmax(axis=1), labels=classes).tolist()


def _macro(labels: Array, probabilities: Array, score: Callable[[Array, Array, Array], Array]) -> Number:
    classes = probabilities.shape[1]

    # Counts rather than scikit-learn's scores: the bootstrap asks a thousand times.
    def mean(labels: Array, predicted: Array) -> float:
        support = np.bincount(labels, minlength=classes)
        right = np.bincount(labels[labels == predicted], minlength=classes)
        there = support > 0
        return float(score(right[there], support[there], np.bincount(predicted, minlength=classes)[there]).mean())

    number = bootstrapped(mean, np.asarray(labels), probabilities.argmax(axis=1))
    return {**number, "classes": len(np.unique(labels))}
