"""Rounds in which contenders take turns, at one length after another, and what comes of them."""

from collections.abc import Iterable
from statistics import median

from contenders import Contender, Problem, dense_pairs
from measure import timed_pass

from sparse_tx.profiler.machine import copy_bytes_per_s, gemm_flops_per_s
from sparse_tx.profiler.memory import free_bytes


class Sweep:
    """Measures contenders at one length after another, in ascending order.

    ``seconds`` is what a contender's rounds at a length may take. One whose single pass takes more
    has that pass as its only round.
    """

    def __init__(self, contenders: Iterable[Contender], seconds: float):
        self.contenders = list(contenders)
        self.seconds = seconds
        self._last: dict[Contender, tuple[int, float]] = {}

    def why_not(self, contender: Contender, problem: Problem) -> str | None:
        """Why a contender is left out of this problem, in a few words; None if it takes part."""
        needed = contender.quadratic_bytes(problem.H, problem.T)
        free = free_bytes(problem.device)
        if needed > free / 2:
            return (
                f"its T x T masks would take {needed / 1e9:.1f} GB of the {free / 1e9:.1f} that"
                " are free"
            )
        if contender.is_baseline or contender not in self._last:
            return None
        T, seconds = self._last[contender]
        longest = seconds * (problem.T / T) ** 2
        if problem.T > T and longest > 2 * self.seconds:
            return f"it took {seconds:.1f} s at {T:,} positions"
        return None

    def run(self, problem: Problem, rounds: int) -> dict:
        """Measure all that can take part; returns times, the machine's best, and who cannot."""
        passes, left_out, inputs = {}, {}, problem.inputs()

        def take_pass(contender):
            backward = contender.has_backward(problem.device)
            return timed_pass(attends[contender], inputs, problem.device, backward=backward)

        attends, n_rounds = {}, {}
        for contender in self.contenders:
            reason = self.why_not(contender, problem)
            if reason:
                left_out[contender] = reason
                continue
            attends[contender] = contender.prepare(problem)
            if contender.compiles():
                take_pass(contender)
            first = take_pass(contender)
            self._last[contender] = (problem.T, sum(first))
            affordable = int(self.seconds / sum(first))
            # All others are set beside the baseline, round by round.
            paired = contender.is_baseline and affordable
            n_rounds[contender] = rounds if paired else min(rounds, affordable)
            passes[contender] = [] if affordable else [first]
        gemm, copy = [], []
        for number in range(rounds):
            gemm.append(gemm_flops_per_s(problem.device, problem.dtype))
            copy.append(copy_bytes_per_s(problem.device))
            for contender, n in n_rounds.items():
                if number < n:
                    passes[contender].append(take_pass(contender))
        rows = _rows(passes, problem, median(gemm), median(copy))
        return {
            "gemm_gflops": [x / 1e9 for x in gemm],
            "copy_gb_per_s": [x / 1e9 for x in copy],
            "baseline": str(_baseline(passes)),
            "contenders": {str(contender): row for contender, row in rows.items()},
            "left_out": {str(contender): reason for contender, reason in left_out.items()},
        }


def _baseline(passes: dict[Contender, list[list[float]]]) -> Contender:
    """The fastest of the dense ones."""
    dense = [contender for contender in passes if contender.is_baseline]
    return min(dense, key=lambda contender: median(map(sum, passes[contender])))


def _rows(passes: dict, problem: Problem, gemm: float, copy: float) -> dict[Contender, dict]:
    H, T = problem.H, problem.T
    baseline = passes[_baseline(passes)]
    rows = {}
    for contender, own in passes.items():
        backward = contender.has_backward(problem.device)
        parts = slice(None) if backward else slice(1)
        seconds = median(sum(laps) for laps in own)
        dense = [sum(laps[parts]) for laps in baseline]
        if len(own) == 1:  # its one pass was taken before the rounds
            dense = [median(dense)]
        # Rounds pair up, so that what slows a machine for a while slows both.
        speedups = [other / sum(laps) for other, laps in zip(dense, own, strict=False)]
        pairs = contender.count_pairs(H, T)
        flops = problem.flops(pairs, backward=backward)
        roofline = max(flops / gemm, problem.compulsory_bytes(backward=backward) / copy)
        rows[contender] = {
            "pattern": contender.pattern,
            "engine": contender.engine,
            "forward_s": [laps[0] for laps in own],
            "backward_s": [laps[1] for laps in own] if backward else None,
            "median_s": seconds,
            "speedup_over_dense": median(speedups),
            "speedups_by_round": speedups,
            "pair_ratio": dense_pairs(H, T) / pairs,
            "useful_gflops": flops / seconds / 1e9,
            "useful_over_gemm": flops / seconds / gemm,
            "roofline_s": roofline,
            "achieved_over_roofline": roofline / seconds,
        }
    return rows


def alternating(rows: dict[str, dict], engines: list[str]) -> dict[str, dict]:
    """How much faster layers are that alternate between local:128 and strided:128, by engine.

    In each round, two dense layers over one of each.
    """
    found = {}
    for engine in engines:
        pair = [rows.get(f"{pattern} by {engine}") for pattern in ("local:128", "strided:128")]
        if all(row and row["backward_s"] for row in pair):
            by_round = [
                2 / (1 / a + 1 / b)
                for a, b in zip(*(row["speedups_by_round"] for row in pair), strict=False)
            ]
            found[engine] = {"speedups_by_round": by_round, "median": median(by_round)}
    return found
