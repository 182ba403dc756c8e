"""What the position attention alone costs, forward and backward, by pattern and size of the map.

Correctness comes first: every contender is held to a float64 computation through masks on a small
map. Times come from rounds in which all contenders take turns, after a first pass that does not
count; peak bytes are what a pass takes beyond what there was at its start, weights and maps, in a
fresh process. One image, in float32.
"""

import sys
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from math import exp, log
from statistics import median

import torch
from segmentation_training import count_pairs, sized
from torch import Tensor

from sparse_tx.masks import dense_mask
from sparse_tx.patterns import parse_pattern
from sparse_tx.profiler.machine import Stopwatch
from sparse_tx.profiler.memory import (
    free_bytes,
    give_back_freed_memory,
    peak_resident_bytes,
    reset_peak,
    resident_bytes,
)
from sparse_tx.profiler.processes import Tell, run_in_fresh_process
from sparse_tx.vision import PositionAttention

CHANNELS, REDUCTION = 64, 8
RELEASED, TORCH = "dense, as released", "dense, torch's attention"
DENSE = (RELEASED, TORCH, "dense, in tiles")
# Patterns, with W for the map's width and E for the edge of a tile; None is all pairs without one.
CONTENDERS = {
    RELEASED: None,
    TORCH: None,
    "dense, in tiles": "dense",
    "rows, then columns": "rows:W,columns:W",
    "criss-cross, once": "crisscross:W",
    "criss-cross, twice": "crisscross:W*2",
    "local": "tiles:W:E",
    "tiles, then lattice": "tiles:W:E,lattice:W:E",
}
# Of the output and of the input's gradient: root mean square of errors over that of values.
TOLERANCE = 1e-5
_GATE_SIDE = 12
# N x N maps in float32 that the released form holds at its peak, in the backward pass.
_MAPS_AT_PEAK = 4


class ReleasedPositionAttention(PositionAttention):
    """All pairs by the N x N map of energies and that of weights, as DANet's released code."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (project(x).flatten(2) for project in (self.query, self.key, self.value))
        weights = (q.mT @ k).softmax(2)  # (B, N, N)
        return x + self.alpha * (v @ weights.mT).view_as(x)


def make_module(contender: str, width: int) -> PositionAttention:
    """The module of a contender, with equal weights for all, and attention that counts."""
    torch.manual_seed(0)
    if contender == RELEASED:
        module = ReleasedPositionAttention(CHANNELS, REDUCTION)
    else:
        pattern = CONTENDERS[contender]
        module = PositionAttention(CHANNELS, REDUCTION, pattern=pattern and sized(pattern, width))
    torch.nn.init.ones_(module.alpha)
    return module


def make_maps(side: int) -> tuple[Tensor, Tensor]:
    """A map ``(1, C, side, side)`` and a gradient for the output."""
    rng = torch.Generator().manual_seed(side)
    x, d_out = torch.randn(2, 1, CHANNELS, side, side, generator=rng)
    return x.requires_grad_(), d_out


def relative_error(contender: str, side: int = _GATE_SIDE) -> float:
    """The larger one of the output and the input's gradient, against float64 through masks."""
    module, (x, d_out) = make_module(contender, side), make_maps(side)
    wide, wide_x = deepcopy(module).double(), x.detach().double().requires_grad_()
    pattern = sized(CONTENDERS[contender] or "dense", side)
    errors = []
    for found, expected in zip(
        _results(module, x, d_out),
        _results(lambda y: _through_masks(wide, y, pattern), wide_x, d_out.double()),
        strict=True,
    ):
        errors.append((found - expected).norm() / expected.norm())
    return torch.stack(errors).max().item()  # NaN if any is


def _results(attend, x: Tensor, d_out: Tensor) -> tuple[Tensor, Tensor]:
    out = attend(x)
    return out.detach(), torch.autograd.grad(out, x, d_out)[0]


def _through_masks(module: PositionAttention, x: Tensor, pattern: str) -> Tensor:
    for layer in parse_pattern(pattern).layers:
        q, k, v = (project(x).flatten(2) for project in (module.query, module.key, module.value))
        mask = dense_mask(layer, q.shape[2], causal=False)
        weights = (q.mT @ k).masked_fill(~mask, -torch.inf).softmax(2)
        x = x + module.alpha * (v @ weights.mT).view_as(x)
    return x


def measure_costs(sides: list[int], *, rounds: int) -> dict:
    """Times, peak bytes and pairs of all contenders on square maps of these sides.

    Raises:
        SystemExit: a contender computes something else.
    """
    _progress("correctness")
    errors = {contender: relative_error(contender) for contender in CONTENDERS}
    for contender, error in errors.items():
        if not error <= TOLERANCE:
            raise SystemExit(
                f"'{contender}' is wrong before it is fast: its relative error against float64 is"
                f" {error:.2g}, and {TOLERANCE:.2g} is allowed"
            )
    found, left_out = {}, {}
    for side in sides:
        _progress(f"{side} x {side} positions")
        taking_part = []
        for contender in CONTENDERS:
            reason = why_not(contender, side)
            if reason:
                left_out.setdefault(str(side), {})[contender] = reason
            else:
                taking_part.append(contender)
        found[str(side)] = _rows(taking_part, side, rounds)
    return {
        "shape": {"B": 1, "C": CHANNELS, "reduction": REDUCTION, "dtype": "float32"},
        "relative_errors": errors,
        "sides": found,
        "left_out": left_out,
        "crossovers": crossovers(found),
    }


def why_not(contender: str, side: int) -> str | None:
    """Why a contender is left out at this size, in a few words; None if it takes part."""
    if contender not in (RELEASED, TORCH):
        return None
    needed, free = 4 * _MAPS_AT_PEAK * side**4, free_bytes("cpu")
    if needed > free / 2:
        return f"its N x N maps would take {needed / 1e9:.1f} GB of the {free / 1e9:.1f} free"
    return None


def _rows(contenders: list[str], side: int, rounds: int) -> dict[str, dict]:
    modules = {contender: make_module(contender, side) for contender in contenders}
    x, d_out = make_maps(side)
    passes: dict[str, list[list[float]]] = {contender: [] for contender in contenders}
    for number in range(rounds + 1):
        for contender, module in modules.items():
            laps = _timed_pass(module, x, d_out)
            if number:
                passes[contender].append(laps)
    rows = {}
    for contender, laps in passes.items():
        pattern = sized(CONTENDERS[contender] or "dense", side)
        rows[contender] = {
            "pattern": pattern,
            "pairs": count_pairs(pattern, side**2),
            "forward_s": [forward for forward, _ in laps],
            "backward_s": [backward for _, backward in laps],
            "median_s": median(map(sum, laps)),
            "peak_bytes": peak_bytes(contender, side),
        }
    return rows


def _timed_pass(module: PositionAttention, x: Tensor, d_out: Tensor) -> list[float]:
    watch = Stopwatch("cpu")
    out = module(x)
    watch.mark()
    out.backward(d_out)
    watch.mark()
    x.grad = None
    module.zero_grad()
    return watch.laps()


def peak_bytes(contender: str, side: int) -> int:
    """What one pass takes beyond what there was at its start, in a fresh process."""
    ending = run_in_fresh_process(tell_peak, contender, side)
    if ending.cause:
        raise MemoryError(f"no memory was left for '{contender}' at {side} x {side} positions")
    return ending.told["peak"][0]


def tell_peak(tell: Tell, contender: str, side: int) -> None:
    """Tell the ``peak`` of one pass, once a small one has let libraries load."""
    give_back_freed_memory()
    _timed_pass(make_module(contender, _GATE_SIDE), *make_maps(_GATE_SIDE))
    module, (x, d_out) = make_module(contender, side), make_maps(side)
    reset_peak()
    before = resident_bytes()
    _timed_pass(module, x, d_out)
    tell("peak", peak_resident_bytes() - before)


def crossovers(sides: dict[str, dict[str, dict]]) -> list[dict]:
    """From how many positions on each sparse contender needs less than dense ones do.

    Of time against the dense contender that is fastest at each size, and of memory against the one
    that needs least, and of both against the released form. Between two sizes, a power law is taken
    to hold. ``positions`` is None if it never needs less, and the smallest size measured if always.
    """
    found = []
    for contender in CONTENDERS:
        if contender in DENSE:
            continue
        for quantity in ("median_s", "peak_bytes"):
            for against in ("the best dense one", RELEASED):
                ratios = list(_ratios(sides, contender, quantity, against))
                found.append(
                    {
                        "contender": contender,
                        "quantity": quantity,
                        "against": against,
                        "positions": first_below_one(ratios),
                        "ratios": {str(N): ratio for N, ratio in ratios},
                    }
                )
    return found


def _ratios(
    sides: dict[str, dict[str, dict]], contender: str, quantity: str, against: str
) -> Iterator[tuple[int, float]]:
    """Positions, and what the contender needs there for what the dense one needs.

    A size at which a dense pass took no page that was not there before says nothing of memory.
    """
    others = DENSE if against != RELEASED else (RELEASED,)
    for side, rows in sides.items():
        dense = [rows[other][quantity] for other in others if other in rows]
        if contender in rows and dense and min(dense):
            yield int(side) ** 2, rows[contender][quantity] / min(dense)


def first_below_one(ratios: list[tuple[int, float]]) -> int | None:
    """Where ratios, by ascending size, fall below 1 for good."""
    if not ratios or ratios[-1][1] >= 1:
        return None
    for (N, before), (M, after) in reversed(list(pairwise(ratios))):
        if before >= 1:  # and all after it are less
            share = log(before) / (log(before) - log(after))
            return round(exp(log(N) + share * (log(M) - log(N))))
    return ratios[0][0]


def print_costs(result: dict) -> None:
    """As markdown: time and peak of every contender, by size; then the crossovers as sentences."""
    sides = result["sides"]
    for title, key, unit in (("ms", "median_s", 1e3), ("peak, MB", "peak_bytes", 1e-6)):
        print(f"| forward and backward, {title} | {' | '.join(f'{s} x {s}' for s in sides)} |")
        print("|---" * (1 + len(sides)) + "|")
        for contender in CONTENDERS:
            cells = [
                f"{rows[contender][key] * unit:,.1f}" if contender in rows else ""
                for rows in sides.values()
            ]
            print(f"| {contender} | {' | '.join(cells)} |")
        print()
    for one in result["crossovers"]:
        # The two questions that most ask; the JSON has all.
        if (one["quantity"] == "peak_bytes") == (one["against"] == RELEASED):
            print(sentence(one))
    for side, reasons in result["left_out"].items():
        for contender, reason in reasons.items():
            print(f"{contender} is left out at {side} x {side}: {reason}.")


def sentence(crossover: dict) -> str:
    """A crossover in words."""
    what = {"median_s": "time", "peak_bytes": "memory"}[crossover["quantity"]]
    whom = crossover["against"]
    sizes = [int(N) for N in crossover["ratios"]]
    if not sizes:
        return f"{crossover['contender']}: nothing to set its {what} beside {whom}."
    if crossover["positions"] is None:
        return (
            f"{crossover['contender']} takes no less {what} than {whom} up to"
            f" {sizes[-1]:,} positions."
        )
    least = crossover["ratios"][str(sizes[-1])]
    since = f"from {crossover['positions']:,} positions"
    if crossover["positions"] == sizes[0]:
        since += " or fewer"
    return (
        f"{crossover['contender']} takes less {what} than {whom} {since}; at {sizes[-1]:,} it takes"
        f" {1 / least:,.1f} times less."
    )


def _progress(what: str) -> None:
    print(f"measuring: {what}", file=sys.stderr, flush=True)
