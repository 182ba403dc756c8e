"""Time and peak memory of sparse attention, beside dense attention, in one run.

    python benchmarks/attention.py --out benchmarks/results/attention.json

Correctness comes first: every contender is held to the float64 reference at a length that this can
take. Times are of forward and backward together, from interleaved rounds after a warm-up, as median
and range. Memory is measured in a process of its own for each contender: the highest resident set
during one forward and backward pass, less what was resident before it, inputs included there. There
malloc gives freed memory back at once, so that the figure is of what is held, not of what it keeps.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from provenance import write_result
from rich.console import Console
from rich.table import Table

from sparse_tx import parse_pattern, sparse_attention

GATE_LENGTH = 700
SDPA = "dense by sdpa"


def attend(name: str, q, k, v):
    """Run a contender: torch's dense attention, or PATTERN by ENGINE."""
    if name == SDPA:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    pattern, engine = name.split(" by ")
    return sparse_attention(q, k, v, pattern, engine=engine)


def make_inputs(H: int, T: int, D: int, dtype=torch.float32):
    """q, k, v and a gradient, ``(1, H, T, D)`` views of ``(1, T, H, D)`` memory."""
    torch.manual_seed(0)
    q, k, v, d_out = (torch.randn(1, T, H, D, dtype=dtype).transpose(1, 2) for _ in range(4))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), d_out


def forward_backward(name: str, q, k, v, d_out) -> tuple[float, float]:
    """Seconds of the forward and of the backward pass."""
    begin = time.perf_counter()
    out = attend(name, q, k, v)
    middle = time.perf_counter()
    out.backward(d_out)
    end = time.perf_counter()
    q.grad = k.grad = v.grad = None
    return middle - begin, end - middle


def largest_error(name: str, H: int, D: int) -> float:
    """The largest deviation, outputs and gradients, from the reference in float64."""
    pattern = name.split(" by ")[0]
    found, expected = [], []
    for results, dtype in ((found, torch.float32), (expected, torch.float64)):
        q, k, v, d_out = make_inputs(H, GATE_LENGTH, D)
        q, k, v = (x.detach().to(dtype).requires_grad_() for x in (q, k, v))
        if dtype == torch.float64:
            out = sparse_attention(q, k, v, pattern, engine="reference")
        else:
            out = attend(name, q, k, v)
        out.backward(d_out.to(dtype))
        results += [out.detach(), q.grad, k.grad, v.grad]
    return max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))


def resident_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def measure_peak(name: str, H: int, T: int, D: int) -> int:
    """In this process: peak resident bytes of one pass beyond what its inputs take."""
    forward_backward(name, *make_inputs(1, 300, D))  # libraries load and threads start
    inputs = make_inputs(H, T, D)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = resident_bytes("VmRSS")
    q, k, v, d_out = inputs
    attend(name, q, k, v).backward(d_out)
    return resident_bytes("VmHWM") - before


def measure_peak_apart(name: str, H: int, T: int, D: int) -> int:
    """``measure_peak`` in a fresh process."""
    command = [sys.executable, __file__, "--measure_peak", name, str(H), str(T), str(D)]
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


def gemm_gflops() -> float:
    """The machine's matrix product, 2048^3 in float32."""
    a = torch.randn(2048, 2048)
    a @ a
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - begin)
    return 2 * 2048**3 / median(seconds) / 1e9


def pairs_per_head(name: str, H: int, T: int) -> float:
    stack = parse_pattern(name.split(" by ")[0])
    return sum(pattern.count_pairs(T) for pattern in stack.layer(0).heads(H)) / H


def main() -> None:
    if sys.argv[1:2] == ["--measure_peak"]:
        name, *sizes = sys.argv[2:]
        print(measure_peak(name, *map(int, sizes)))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seq_len", type=int, default=12_288)
    parser.add_argument("--n_head", type=int, default=8)
    parser.add_argument("--head_dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patterns", default="local:128;strided:128;fixed:128:32")
    parser.add_argument("--engines", default="cpu,views")
    parser.add_argument("--growth", default="8192,16384,32768,65536,131072")
    parser.add_argument("--out")
    args = parser.parse_args()
    H, T, D = args.n_head, args.seq_len, args.head_dim
    engines = args.engines.split(",")
    names = [SDPA]
    names += [
        f"{pattern} by {engine}" for pattern in args.patterns.split(";") for engine in engines
    ]

    errors = {name: largest_error(name, H, D) for name in names}
    assert max(errors.values()) < 1e-4, f"wrong before it is fast: {errors}"

    inputs = make_inputs(H, T, D)
    for name in names:
        forward_backward(name, *inputs)
    seconds = {name: [] for name in names}
    gemm = []
    for _ in range(args.rounds):
        gemm.append(gemm_gflops())
        for name in names:
            seconds[name].append(forward_backward(name, *inputs))
    del inputs

    table = Table(title=f"forward + backward, T {T:,}, H {H}, D {D}, float32")
    for column in ("", "seconds", "range", "x dense", "pairs", "GFLOP/s", "of gemm", "peak MB"):
        table.add_column(column, justify="right")
    rows = {}
    dense = median(map(sum, seconds[SDPA]))
    for name in names:
        totals = [sum(pair) for pair in seconds[name]]
        # 2 products forward and 5 backward, 2 D operations each for every attended pair.
        useful = 7 * 2 * D * pairs_per_head(name, H, T) * H / median(totals) / 1e9
        peak = measure_peak_apart(name, H, T, D)
        rows[name] = {
            "forward_s": [f for f, _ in seconds[name]],
            "backward_s": [b for _, b in seconds[name]],
            "median_s": median(totals),
            "speedup_over_dense": dense / median(totals),
            "pair_ratio": pairs_per_head(SDPA, H, T) / pairs_per_head(name, H, T),
            "useful_gflops": useful,
            "useful_over_gemm": useful / median(gemm),
            "peak_bytes": peak,
            "largest_error": errors[name],
        }
        table.add_row(
            name,
            f"{median(totals):.3f}",
            f"{min(totals):.3f}-{max(totals):.3f}",
            f"{dense / median(totals):.1f}",
            f"{rows[name]['pair_ratio']:.1f}",
            f"{useful:.1f}",
            f"{useful / median(gemm):.2f}",
            f"{peak / 1e6:.0f}",
        )
    Console().print(table)
    alternating = {}
    for engine in engines:
        pair = [f"local:128 by {engine}", f"strided:128 by {engine}"]
        if set(pair) <= set(names):
            by_round = [
                2 * sum(d) / (sum(a) + sum(b))
                for d, a, b in zip(seconds[SDPA], *(seconds[name] for name in pair), strict=True)
            ]
            alternating[engine] = {"speedups_by_round": by_round, "median": median(by_round)}
            print(
                f"local:128,strided:128 by {engine} against dense, two layers each:"
                f" {median(by_round):.1f} times ({min(by_round):.1f} to {max(by_round):.1f} in"
                f" {args.rounds} rounds)"
            )
    growth = {}
    for name in names[1:]:
        growth[name] = {n: measure_peak_apart(name, 1, int(n), D) for n in args.growth.split(",")}
        print(f"peak MB, one head, {name}:", {n: round(b / 1e6) for n, b in growth[name].items()})
    write_result(
        args.out,
        {
            "shape": {"B": 1, "H": H, "T": T, "D": D, "dtype": "float32"},
            "gemm_gflops": gemm,
            "contenders": rows,
            "alternating_local_strided": alternating,
            "peak_bytes_one_head": growth,
        },
    )


if __name__ == "__main__":
    main()
