"""One pass of sparse attention over a million positions: seconds, and what it holds in memory.

    python benchmarks/long_context.py --out benchmarks/results/long_context.json

Dense attention would take hours there, so nothing stands beside the times. Each pattern has a
process of its own; its memory is the highest resident set, inputs, results and torch itself
included.
"""

import argparse
import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from contenders import Contender, Problem
from measure import timed_pass
from provenance import write_result


def measure(pattern: str, engine: str, problem: Problem) -> dict:
    """Seconds forward and backward, and peak resident bytes of this process."""
    attend = Contender(pattern, engine).prepare(problem)
    forward, backward = timed_pass(attend, problem.inputs(), problem.device, backward=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts kilobytes
    return {"forward_s": forward, "backward_s": backward, "peak_resident_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patterns", default="strided:1024;local:1024", help="separated by ;")
    parser.add_argument("--engine", default="cpu")
    parser.add_argument("--seq_len", type=int, default=1_048_576)
    parser.add_argument("--n_head", type=int, default=4)
    parser.add_argument("--head_dim", type=int, default=64)
    parser.add_argument("--out")
    args = parser.parse_args()
    problem = Problem(args.n_head, args.seq_len, args.head_dim)
    found = {}
    for pattern in args.patterns.split(";"):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            found[pattern] = fresh.submit(measure, pattern, args.engine, problem).result()
        print(
            f"{pattern} by {args.engine}, T {args.seq_len:,}: forward"
            f" {found[pattern]['forward_s']:.1f} s, backward {found[pattern]['backward_s']:.1f} s,"
            f" {found[pattern]['peak_resident_bytes'] / 1e9:.1f} GB in all",
            flush=True,
        )
    shape = {"B": 1, "H": args.n_head, "T": args.seq_len, "D": args.head_dim, "dtype": "float32"}
    write_result(args.out, {"shape": shape, "engine": args.engine, "patterns": found})


if __name__ == "__main__":
    main()
