"""Mean intersection over union from confusion matrices, and intervals of paired differences."""

import numpy as np


def confusion_matrix(predicted: np.ndarray, true: np.ndarray, n_classes: int) -> np.ndarray:
    """Count pixels by true class, as rows, and predicted: ``(n_classes, n_classes)`` int64."""
    pairs = true.astype(np.int64).ravel() * n_classes + predicted.astype(np.int64).ravel()
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


def ious(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of every class, ``(..., n_classes)`` from ``(..., n, n)`` counts.

    NaN for a class that is neither there nor predicted.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(float)
    either = confusion.sum(-1) + confusion.sum(-2) - hits
    return np.divide(hits, either, out=np.full_like(hits, np.nan), where=either > 0)


def mean_iou(confusion: np.ndarray, classes: tuple[int, ...] | None = None) -> np.ndarray:
    """The mean of ``ious`` over the classes that are there or predicted; of ``classes`` alone.

    One matrix over the whole test set gives the figure that papers print; a mean over images of
    each image's own would be another.
    """
    by_class = ious(confusion)
    return np.nanmean(by_class if classes is None else by_class[..., list(classes)], axis=-1)


def paired_difference(
    ours: np.ndarray, theirs: np.ndarray, *, resamples: int = 5000, seed: int = 0
) -> dict:
    """How much higher the mean IoU of ``ours`` is, with a bootstrap interval of 95 %.

    Both are counts ``(seeds, groups, n_classes, n_classes)`` of the same seeds and the same groups
    of test scenes. A resample draws seeds with replacement and, within each, groups of scenes; both
    sides get the same draws, and each seed's figure comes from the one matrix of its drawn groups.
    With few seeds such an interval is somewhat too narrow: the differences by seed stand beside it.
    """
    n_seeds, n_groups, *_ = ours.shape
    rng = np.random.default_rng(seed)
    drawn = rng.integers(n_seeds, size=(resamples, n_seeds))
    differences = np.zeros((resamples, n_seeds))
    for s in range(n_seeds):
        here = drawn == s
        times = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=int(here.sum()))
        a, b = (mean_iou(np.tensordot(times, counts[s], axes=1)) for counts in (ours, theirs))
        differences[here] = a - b
    low, high = np.percentile(differences.mean(1), [2.5, 97.5])
    by_seed = mean_iou(ours.sum(1)) - mean_iou(theirs.sum(1))
    return {
        "difference": float(by_seed.mean()),
        "low": float(low),
        "high": float(high),
        "by_seed": by_seed.tolist(),
    }
