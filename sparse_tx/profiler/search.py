"""The largest whole number whose cost is within a budget."""

from collections.abc import Callable

# How far beyond a first answer a longer one is looked for, and in how many steps, both as shares
# of the answer. A pattern as wide as the square root of the length costs less at some lengths than
# a little before; such dips are far shorter than the reach of the search.
_REACH, _PROBES = 16, 256


def largest_within(cost_of: Callable[[int], float], budget: float, *, most: int) -> int:
    """Find the largest ``n`` up to ``most`` with ``cost_of(n) <= budget``; 0 if 1 is beyond it.

    Doubles until the budget is exceeded and halves the interval from there, which is exact for a
    cost that never falls. For one that dips now and then, a later stretch within the budget is
    looked for at 256 places up to 1/16 beyond: the answer is within the budget, the number
    after it is not, and only stretches shorter than 1/4096 of it can be missed.

    Args:
        cost_of: what ``n`` costs, by an exact counter; called some hundreds of times.
        budget: what it may cost, in the same unit.
        most: the largest ``n`` that counts.

    Raises:
        ValueError: ``budget`` is not a number, or ``most`` is below 1.
    """
    if budget != budget or most < 1:
        raise ValueError(f"nothing can be found up to {most} within a budget of {budget}")
    if cost_of(1) > budget:
        return 0
    within = 1
    while True:
        within = _last_of_stretch(cost_of, budget, within, most)
        last = min(most, within + max(_PROBES, within // _REACH))
        step = max(1, (last - within) // _PROBES)
        probes = range(last, within + 1, -step)
        later = next((probe for probe in probes if cost_of(probe) <= budget), None)
        if later is None:
            return within
        within = later


def _last_of_stretch(cost_of: Callable[[int], float], budget: float, within: int, most: int) -> int:
    """A number from ``within`` on whose cost is within the budget, while the next one's is not."""
    beyond = min(2 * within, most + 1)
    while beyond <= most and cost_of(beyond) <= budget:
        within, beyond = beyond, min(2 * beyond, most + 1)
    while beyond - within > 1:
        middle = (within + beyond) // 2
        if cost_of(middle) <= budget:
            within = middle
        else:
            beyond = middle
    return within
