"""The three ablations of the CBAM paper, and how a small experiment compares with them.

Figures are from arXiv:1807.06521, tables 1 to 3: ResNet-50 on ImageNet-1K, top-1 error in percent.
"""

from collections.abc import Iterator
from itertools import combinations, product
from statistics import mean, stdev

import numpy as np
from scipy.stats import t as student

PUBLISHED = {
    "1: pools of the channel gate": {"none": 24.56, "avg": 23.14, "max": 23.20, "avg+max": 22.80},
    "2: descriptor of the spatial gate": {
        "avg": 23.14,
        "avg+max": 22.80,
        "conv k3": 22.96,
        "conv k7": 22.90,
        "pool k3": 22.68,
        "pool k7": 22.66,
    },
    "3: order of the gates": {
        "avg": 23.14,
        "pool k7": 22.66,
        "spatial first": 22.78,
        "parallel": 22.95,
    },
}
# What a mechanism task is there to show: of its two arms, the first should err less.
PREDICTED = {
    "rare patch": [("max", "avg"), ("avg+max", "avg")],
    "dot density": [("avg", "max"), ("avg+max", "max")],
    "marked place": [("pool k7", "avg+max"), ("conv k7", "avg+max"), ("pool k7", "pool k3")],
}

# Of the intervals. Few seeds make such an interval too narrow: of differences drawn from a normal
# distribution around 0, five leave 0 out in 9 % of cases and ten in 4 %; at 0.95 in 15 and 10 %.
LEVEL = 0.99
STUDENT_LEVEL = 0.95
INTERVALS = (
    f"low to high: percentile bootstrap over seeds, nominally {LEVEL:.0%}; where there is no"
    " difference, 9 % of such intervals of five seeds leave out 0, and 4 % of ten; student: of"
    f" Student's t, {STUDENT_LEVEL:.0%}. Over seeds alone: those of cluttered digits share most of"
    " the digits that they are made of"
)
# Resamples that are all taken; of more, so many are drawn.
MOST_RESAMPLES = 50_000

Errors = dict[str, dict[str, list[float]]]
"""Percent, by task, arm and seed."""


def compare(errors: Errors) -> list[dict]:
    """Every pair of rows of each ablation, and the predictions, on every task.

    Returns:
        Of each comparison ``table``, ``task``, ``arm`` and ``against``; ``published``, by how many
        points the arm's error was above that of the other on ImageNet (None for a prediction, which
        has a sign only); and what ``paired`` says of both here.
    """
    found = []
    for table, rows in PUBLISHED.items():
        for (against, theirs), (arm, ours) in combinations(rows.items(), 2):
            for task, by_arm in errors.items():
                published = round(ours - theirs, 2)
                row = {"table": table, "task": task, "arm": arm, "against": against}
                measured = paired(by_arm[arm], by_arm[against], published)
                found.append(row | {"published": published} | measured)
    for task, pairs in PREDICTED.items():
        for arm, against in pairs if task in errors else ():
            row = {"table": "predicted", "task": task, "arm": arm, "against": against}
            measured = paired(errors[task][arm], errors[task][against], -1)
            found.append(row | {"published": None} | measured)
    return found


def paired(ours: list[float], theirs: list[float], expected: float) -> dict:
    """The difference of two arms over the same seeds, with its interval and the verdict.

    Args:
        ours: error of the arm by seed.
        theirs: error of the other.
        expected: a difference whose sign is compared.

    Returns:
        In points ``difference``, ``low`` and ``high`` of the bootstrap, ``student``, which is low
        and high, and ``by_seed``; and the ``verdict`` by the bootstrap.
    """
    by_seed = [a - b for a, b in zip(ours, theirs, strict=True)]
    low, high = bootstrap_interval(by_seed)
    return {
        "difference": mean(by_seed),
        "low": low,
        "high": high,
        "student": student_interval(by_seed),
        "by_seed": by_seed,
        "verdict": verdict(low, high, expected),
    }


def bootstrap_interval(values: list[float], level: float = LEVEL) -> tuple[float, float]:
    """Of the mean of ``values``, by percentiles of the means of resamples.

    All resamples count where they are few, so that the interval has no noise of its own.
    """
    n, data = len(values), np.asarray(values)
    if n**n <= MOST_RESAMPLES:
        drawn = np.array(list(product(range(n), repeat=n)))
    else:
        drawn = np.random.default_rng(0).integers(n, size=(MOST_RESAMPLES, n))
    tail = 50 * (1 - level)
    low, high = np.percentile(data[drawn].mean(1), [tail, 100 - tail])
    return float(low), float(high)


def student_interval(values: list[float], level: float = STUDENT_LEVEL) -> tuple[float, float]:
    """Of the mean of two or more ``values`` of a normal distribution."""
    n = len(values)
    half = float(student.ppf((1 + level) / 2, n - 1)) * stdev(values) / n**0.5
    return mean(values) - half, mean(values) + half


def verdict(low: float, high: float, expected: float) -> str:
    """``reproduced``, ``reversed``, or ``not resolved`` if the interval holds 0."""
    if low <= 0 <= high:
        return "not resolved"
    return "reproduced" if (low > 0) == (expected > 0) else "reversed"


def markdown(errors: Errors, comparisons: list[dict]) -> Iterator[str]:
    """Lines: the errors of all arms, the comparisons of each ablation, and the predictions."""
    tasks = list(errors)
    arms = dict.fromkeys(arm for by_arm in errors.values() for arm in by_arm)
    published = {arm: error for rows in PUBLISHED.values() for arm, error in rows.items()}
    yield "Error in percent, mean and standard deviation over seeds:"
    yield ""
    yield from _head(["arm", "ImageNet, published", *tasks])
    for arm in arms:
        cells = [
            f"{mean(errors[task][arm]):.2f} ({_deviation(errors[task][arm])})" for task in tasks
        ]
        yield _row([arm, f"{published[arm]:.2f}", *cells])
    yield ""
    yield (
        f"Differences in points, the first arm less the second, with {LEVEL:.0%} bootstrap"
        " intervals over seeds. These are too narrow: where there is no difference, one in 11 of"
        " five seeds leaves out 0, and one in 25 of ten, so that among so many comparisons some"
        f" are resolved by chance. Where Student's {STUDENT_LEVEL:.0%} interval leaves out 0 too,"
        " there is a *. A published difference is of one training each."
    )
    for table in PUBLISHED:
        yield ""
        yield from _head([f"table {table}", "published", *tasks])
        rows: dict[tuple[str, str, float], list[str]] = {}
        for one in comparisons:
            if one["table"] == table:
                key = (one["arm"], one["against"], one["published"])
                rows.setdefault(key, []).append(_cell(one))
        for (arm, against, difference), cells in rows.items():
            yield _row([f"{arm} - {against}", f"{difference:+.2f}", *cells])
    predictions = [one for one in comparisons if one["table"] == "predicted"]
    if predictions:
        yield ""
        yield from _head(["predicted by the mechanism", "task", "found"])
        for one in predictions:
            yield _row([f"{one['arm']} errs less than {one['against']}", one["task"], _cell(one)])
    yield ""
    for task in tasks:
        yield f"{task}: {_counts(comparisons, task)}"


def count_verdicts(comparisons: list[dict], task: str) -> dict[str, int]:
    """How often each verdict on the published comparisons fell on a task.

    A pair that stands in two of the tables counts once.
    """
    counts = {"reproduced": 0, "not resolved": 0, "reversed": 0}
    own = [one for one in comparisons if one["task"] == task and one["table"] != "predicted"]
    for word in {(one["arm"], one["against"]): one["verdict"] for one in own}.values():
        counts[word] += 1
    return counts


def _counts(comparisons: list[dict], task: str) -> str:
    counts = count_verdicts(comparisons, task)
    return f"{', '.join(f'{n} {word}' for word, n in counts.items())} of {sum(counts.values())}"


def _cell(one: dict) -> str:
    interval = f"[{one['low']:+.2f}, {one['high']:+.2f}]"
    low, high = one["student"]
    return f"{one['difference']:+.2f} {interval} {one['verdict']}{'' if low <= 0 <= high else '*'}"


def _deviation(values: list[float]) -> str:
    return f"{stdev(values):.2f}" if len(values) > 1 else "-"


def _head(names: list[str]) -> Iterator[str]:
    yield _row(names)
    yield _row(["---"] * len(names))


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
