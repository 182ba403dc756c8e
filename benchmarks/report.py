"""The result of the attention benchmark as plain text, at most 110 columns wide."""

from collections.abc import Callable, Iterable
from itertools import groupby
from statistics import median
from textwrap import wrap

WIDTH = 110


def print_contenders(result: dict) -> None:
    """Print a table of all contenders, by pattern, and what has to be said about them."""
    shape, rows = result["shape"], result["contenders"].values()
    gemm, copy = median(result["gemm_gflops"]), median(result["copy_gb_per_s"])
    rounds = len(result["gemm_gflops"])
    print(
        f"\nT {shape['T']:,}, H {shape['H']}, D {shape['D']}, {shape['dtype']} on"
        f" {shape['device']}; matrix product {with_range(result['gemm_gflops'])} GFLOP/s,"
        f"\ncopy {with_range(result['copy_gb_per_s'])} GB/s; median (range) of {_rounds(rounds)};"
        f" baseline {result['baseline']}"
    )
    print(
        f"\n{'':18}{'forward, ms':20}{'backward, ms':20}{'times dense':20}"
        f"{'GFLOP/s':>8}{'/gemm':>7}{'/roof':>7}{'MB':>8}"
    )
    for pattern, ratio, group in by_pattern(rows):
        print(f"{pattern}{ratio}")
        for row in group:
            backward = milliseconds(row["backward_s"]) if row["backward_s"] else "none"
            print(
                f"  {row['engine']:16}{milliseconds(row['forward_s']):20}{backward:20}"
                f"{with_range(row['speedups_by_round']):20}"
                f"{_short(row['useful_gflops']):>8}{row['useful_over_gemm']:7.2f}"
                f"{row['achieved_over_roofline']:7.2f}"
                f"{_megabytes(row):>8}"
            )
    print(
        f"\ngemm: {gemm:.4g} GFLOP/s. roof: the larger of FLOPs / gemm and compulsory bytes /"
        f" {copy:.3g} GB/s.\nMB: peak beyond the inputs."
    )
    for line in _remarks(result, rounds):
        _print_wrapped(line)


def _remarks(result: dict, rounds: int) -> Iterable[str]:
    rows = result["contenders"]
    forward_only = dict.fromkeys(row["engine"] for row in rows.values() if not row["backward_s"])
    if forward_only:
        yield (
            f"forward only, against dense's forward: {', '.join(forward_only)} (FlexAttention has"
            " no backward on a CPU)"
        )
    for name, row in rows.items():
        n = len(row["forward_s"])
        if n < rounds:
            yield f"{_rounds(n)}, as it is slow: {name}"
    for name, reason in result["left_out"].items():
        yield f"left out: {name}: {reason}"
    for engine, found in result["alternating_local_strided"].items():
        by_round = found["speedups_by_round"]
        yield (
            f"local:128,strided:128 by {engine} against dense, two layers each:"
            f" {found['median']:.1f} times ({min(by_round):.1f} to {max(by_round):.1f} in"
            f" {_rounds(len(by_round))})"
        )


def _rounds(n: int) -> str:
    return f"{n} round" if n == 1 else f"{n} rounds"


def print_by_length(result: dict) -> None:
    """Print speed-up and memory of every contender at every length, and of one head."""
    here = {int(T): found["contenders"] for T, found in result["lengths"].items()}
    here[result["shape"]["T"]] = result["contenders"]
    if len(here) > 1:
        _print_lengths("times dense", here, lambda row: f"{row['speedup_over_dense']:.3g}")
        _print_lengths("peak MB", here, _megabytes)
        reasons = {
            name: f"{reason} (left out at {int(T):,})"
            for T, found in sorted(result["lengths"].items(), reverse=True)
            for name, reason in found["left_out"].items()
        }
        for name, reason in reasons.items():
            _print_wrapped(f"{name}: {reason}")
    growth: dict[int, dict] = {}
    for name, found in result["peak_bytes_one_head"].items():
        pattern, engine = name.split(" by ")
        for T, peak in found.items():
            row = {"pattern": pattern, "engine": engine, "pair_ratio": None, "peak_bytes": peak}
            growth.setdefault(int(T), {})[name] = row
    if growth:
        _print_lengths("peak MB, one head", growth, _megabytes)


def _print_lengths(title: str, by_length: dict[int, dict], cell: Callable[[dict], str]) -> None:
    lengths = sorted(by_length)
    print(f"\n{title + ', at T':26}" + "".join(f"{T:>10,}" for T in lengths))
    rows = {name: row for T in lengths for name, row in by_length[T].items()}
    for pattern, _, group in by_pattern(rows.values()):
        print(pattern)
        for row in group:
            name = f"{pattern} by {row['engine']}"
            found = [by_length[T].get(name) for T in lengths]
            cells = "".join(f"{cell(own) if own else '-':>10}" for own in found)
            print(f"  {row['engine']:24}{cells}")


def _print_wrapped(line: str) -> None:
    print("\n".join(wrap(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)))


def by_pattern(rows: Iterable[dict]) -> Iterable[tuple[str, str, list[dict]]]:
    """Rows grouped by pattern, with how many times fewer pairs than dense it has, in words."""
    ordered = sorted(rows, key=lambda row: row["pattern"] != "dense")
    patterns = list(dict.fromkeys(row["pattern"] for row in ordered))
    ordered.sort(key=lambda row: patterns.index(row["pattern"]))
    for pattern, group in groupby(ordered, key=lambda row: row["pattern"]):
        group = list(group)
        ratio = group[0]["pair_ratio"]
        fewer = ratio and pattern != "dense"
        yield pattern, f"  ({ratio:.1f} times fewer pairs than dense)" if fewer else "", group


def _megabytes(row: dict) -> str:
    return f"{round(row['peak_bytes'] / 1e6):,}"


def milliseconds(seconds: list[float]) -> str:
    return with_range([1000 * s for s in seconds])


def with_range(values: list[float]) -> str:
    """``median (least-most)``, or one value alone."""
    if len(values) == 1:
        return _short(values[0])
    return f"{_short(median(values))} ({_short(min(values))}-{_short(max(values))})"


def _short(value: float) -> str:
    """Three digits, or all of those before the point, or two of a small number."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.1 else f"{value:.2g}"
