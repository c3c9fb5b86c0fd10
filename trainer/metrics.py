"""What a model's probabilities are worth: numbers, and how sure they are.

A new metric is one function and one entry in METRICS.  A metric takes `labels` int [n] and
`probabilities` float [n, K], n ≥ 1, and returns what goes into metrics.json under its name,
or None where it means nothing for this many classes.
"""

import math
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
MOST_DRAWN = 500_000  # examples times classes; above it, the areas have no interval: it would take minutes
SMALLEST_PROBABILITY = float(np.finfo(np.float32).eps)
BINS = 15  # of confidence, as in Guo et al. (2017)


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


def brier_score(labels: Array, probabilities: Array) -> Number:
    """The mean squared distance of the probabilities from what is true, 0 to 2 (Brier 1950)."""
    distances = probabilities.astype(np.float64)
    distances[np.arange(len(labels)), labels] -= 1.0
    return bootstrapped(np.mean, (distances**2).sum(axis=1))


def expected_calibration_error(labels: Array, probabilities: Array) -> Number:
    """How far the confidence of an answer is from how often such answers are right, in the mean (Guo et al. 2017)."""

    def error(confidence: Array, right: Array) -> float:
        return float(np.abs(np.bincount(_bins(confidence), right - confidence)).sum() / len(right))

    return bootstrapped(error, *_answers(labels, probabilities))


def macro_auc(labels: Array, probabilities: Array) -> Number | None:
    """The mean area under the ROC curve of each class against the others, of the classes that have examples."""
    areas = {k: area for k, area in enumerate(class_areas(labels, probabilities)) if area is not None}
    if not areas:
        return None
    n = len(labels)
    number: Number = {"low": None, "high": None, "n": n}
    if n * len(areas) <= MOST_DRAWN:
        ranked = [(labels == k, probabilities[:, k].argsort(kind="stable"), probabilities[:, k]) for k in areas]

        # Which classes have an example of their own and one of another may change as examples are drawn.
        def mean(drawn: Array) -> float:
            weights = np.bincount(drawn, minlength=n)
            found = [_area(weights, *each) for each in ranked]
            return float(np.nanmean(found)) if not np.isnan(found).all() else 0.5

        number = bootstrapped(mean, np.arange(n))
    return {**number, "value": float(np.mean(list(areas.values()))), "classes": len(areas)}


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
    "brier_score": brier_score,
    "expected_calibration_error": expected_calibration_error,
    "macro_auc": macro_auc,
    "macro_precision": macro_precision,
    "macro_recall": macro_recall,
    "macro_f1": macro_f1,
}


LOWER_IS_BETTER = frozenset({"log_loss", "brier_score", "expected_calibration_error"})


def headline(labels: Array, probabilities: Array) -> dict[str, Number]:
    """Every metric of METRICS that means something here, by name."""
    numbers = {name: metric(labels, probabilities) for name, metric in METRICS.items()}
    return {name: number for name, number in numbers.items() if number is not None}


def per_class(labels: Array, probabilities: Array, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall, F1, area under the ROC curve and support of each class, in the order of `class_names`.

    A number that does not exist is None: all of a class without an example, the precision
    of a class that was never predicted, the area where no example is of another class.
    """
    classes = range(len(class_names))
    columns = sklearn.metrics.precision_recall_fscore_support(
        labels, probabilities.argmax(axis=1), labels=classes, zero_division=np.nan
    )
    areas = class_areas(labels, probabilities)
    rows = []
    for name, precision, recall, f1, support, area in zip(class_names, *columns, areas, strict=True):
        numbers = {"precision": precision, "recall": recall, "f1": f1}
        known = {key: float(v) if support and np.isfinite(v) else None for key, v in numbers.items()}
        rows.append({"class": name, "support": int(support), **known, "auc": area})
    return rows


def class_areas(labels: Array, probabilities: Array) -> list[float | None]:
    """The area under the ROC curve of each class against all others; None without examples of both."""
    found = [(labels == k, probabilities[:, k]) for k in range(probabilities.shape[1])]
    return [
        float(sklearn.metrics.roc_auc_score(own, column)) if 0 < own.sum() < len(own) else None for own, column in found
    ]


def reliability(labels: Array, probabilities: Array) -> list[dict[str, Any]]:
    """How often answers of about the same confidence are right, by bins of it; those without an answer left out.

    An entry holds the mean `confidence`, and the `accuracy` with its Wilson interval.
    """
    confidence, right = _answers(labels, probabilities)
    bins = _bins(confidence)
    return [
        {"confidence": float(confidence[bins == k].mean()), "accuracy": rate(int(right[bins == k].sum()), int(n))}
        for k, n in enumerate(np.bincount(bins))
        if n
    ]


def confusion_matrix(labels: Array, probabilities: Array) -> list[list[int]]:
    """Counts of examples [K, K]: a row is the true class, a column the predicted one."""
    classes = range(probabilities.shape[1])
    return sklearn.metrics.confusion_matrix(labels, probabilities.argmax(axis=1), labels=classes).tolist()


def _answers(labels: Array, probabilities: Array) -> tuple[Array, Array]:
    """How sure each answer is, and whether it is right, float64 [n] each."""
    right = probabilities.argmax(axis=1) == labels
    return probabilities.max(axis=1).astype(np.float64), right.astype(np.float64)


def _bins(confidence: Array) -> Array:
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def _area(weights: Array, own: Array, order: Array, column: Array) -> float:
    """The area under the ROC curve, each example counting `weights` times; NaN without examples of both kinds."""
    ordered = column[order]
    own_weights, others = (weights * own)[order], (weights * ~own)[order]
    # Examples of the same probability count half against each other.
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    mine, theirs = np.add.reduceat(own_weights, first), np.add.reduceat(others, first)
    below = np.cumsum(theirs) - theirs
    pairs = own_weights.sum() * others.sum()
    return float((mine * (below + theirs / 2)).sum() / pairs) if pairs else math.nan


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
