"""Time and peak memory of sparse attention beside dense attention and its peers, in one run.

    python benchmarks/attention.py --out benchmarks/results/attention.json
    python benchmarks/attention.py --device cuda --dtype bfloat16 --head_dim 128

Correctness comes first: every contender, "PATTERN by ENGINE", is held to the float64 reference at a
length that this can take. Times come from rounds in which all contenders take turns, after a first
pass that does not count, as median and range. A contender whose passes are long gets fewer rounds,
and is left out of further lengths where it would take too long; the output says so. On a GPU, times
are the device's. Memory is what a pass takes at its peak beyond its inputs, in a fresh process.

Useful FLOP/s count the floating-point operations on attended pairs: 2 D for each of 2 matrix
products forward and 5 backward. They are set beside the machine's own matrix product, measured in
the same rounds in the same precision, and beside the roofline (Williams et al. 2009), which is the
least time that the machine could take:

    roofline_s = max(useful FLOPs / (GEMM FLOP/s), compulsory bytes / (copy bytes/s))
    achieved over roofline = roofline_s / median_s

Compulsory bytes are those of reading every input once and writing every result once: q, k, v, out
forward; these, the gradient of out and three gradients backward. Copying counts bytes read and
bytes written. For a contender without a backward pass all of this, and its speed-up over dense, is
of the forward pass alone.
"""

import argparse
import sys
from dataclasses import replace
from math import inf
from pathlib import Path
from tempfile import TemporaryFile

import torch
from contenders import DEFAULT_ENGINES, Contender, Problem, line_up
from measure import peak_bytes
from provenance import write_result
from report import print_by_length, print_contenders
from sweep import Sweep, alternating

from sparse_tx import sparse_attention
from sparse_tx.errors import UserError

GATE_LENGTH = 700
# Of out and of each gradient, the root mean square of errors over that of values. A window that is
# off by one errs by its share of a query's weight, a tenth for 128 keys.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}


def relative_error(contender: Contender, problem: Problem) -> float:
    """The larger relative error, of out and of each gradient, against the float64 reference."""
    q, k, v, d_out = problem.inputs()
    backward = contender.has_backward(problem.device)
    found = _results(contender.prepare(problem), (q, k, v), d_out, backward)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]

    def reference(q, k, v):
        return sparse_attention(q, k, v, contender.layer, engine="reference")

    expected = _results(reference, wide, d_out.double(), backward)
    # A gradient may be zero: that of q, where every query reads one key.
    least = 1e-2 * expected[0].norm()
    errors = [
        (a.double() - b).norm() / b.norm().clamp(min=least)
        for a, b in zip(found, expected, strict=True)
    ]
    return torch.stack(errors).max().item()  # NaN if any is


def _results(attend, qkv, d_out, backward: bool) -> list[torch.Tensor]:
    with torch.set_grad_enabled(backward):
        out = attend(*qkv)
        grads = torch.autograd.grad(out, qkv, d_out) if backward else ()
    return [out.detach(), *grads]


def pass_gate(contenders: list[Contender], problem: Problem) -> tuple[dict, dict]:
    """Relative errors of those that compute their pattern, and why others do not take part.

    Raises:
        SystemExit: a contender computes something else.
    """
    errors, left_out = {}, {}
    for contender in contenders:
        try:
            errors[contender] = relative_error(contender, problem)
        except UserError as reason:
            left_out[contender] = str(reason)
            continue
        limit = TOLERANCE[problem.dtype]
        if not errors[contender] <= limit:
            raise SystemExit(
                f"{contender} is wrong before it is fast: its relative error against the float64"
                f" reference at {problem.T} positions is {errors[contender]:.2g}, and"
                f" {limit:.2g} is allowed"
            )
    return errors, left_out


def growth_of_one_head(
    sweep: Sweep, problem: Problem, lengths: list[int]
) -> dict[str, dict[int, int]]:
    """Peak bytes of one head at each length, for all that need not compile nor take too long.

    The shape is another than that of the passes that were timed, so that a contender which compiles
    would have to do so again, for long on a CPU.
    """
    found = {}
    for contender in sweep.contenders:
        if contender.compiles() and problem.device == "cpu":
            continue
        for T in lengths:
            one = replace(problem, H=1, T=T)
            if not contender.is_baseline and not sweep.why_not(contender, one):
                found.setdefault(str(contender), {})[T] = peak_bytes(contender, one)
    return found


def lengths(text: str) -> list[int]:
    """Read ``1024,4096``: lengths in tokens, each once, in ascending order."""
    found = [int(word) for word in text.split(",") if word.strip()]
    if any(T < 1 for T in found):
        raise ValueError(text)
    return sorted(set(found))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--patterns", default="local:128;strided:128;fixed:128:32", help="separated by ;")
    add("--engines", help="ours and others', separated by , (default: all that may run)")
    add("--seq_len", type=int, default=12_288, help="tokens, of the table")
    add("--lengths", type=lengths, default="1024,4096,32768", help="tokens, further, of the plot")
    add("--growth", type=lengths, default="16384,131072", help="tokens, of one head's memory")
    add("--n_head", type=int, default=8)
    add("--head_dim", type=int, default=64)
    add("--rounds", type=int, default=5, help="at seq_len; at most three at the other lengths")
    add("--seconds", type=float, default=15, help="what a contender's rounds at a length may take")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--out", help="where the JSON goes, and beside it the plot as PNG")
    args = parser.parse_args()
    for name in ("seq_len", "n_head", "head_dim", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; give 1 or more")
    if not 0 < args.seconds < inf:
        parser.error(f"--seconds is {args.seconds}; give a number above 0")
    if args.device == "cpu" and args.dtype != "float32":
        parser.error(f"--dtype {args.dtype} needs --device cuda; a CPU is measured in float32")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    if args.out:
        _check_out(Path(args.out), parser)
    args.patterns = args.patterns.split(";")
    args.engines = (args.engines or DEFAULT_ENGINES[args.device]).split(",")
    try:
        args.contenders = line_up(args.patterns, args.engines, args.device)
        for contender in args.contenders:
            contender.layer.heads(args.n_head)
    except UserError as error:
        parser.error(str(error))
    return args


def _check_out(path: Path, parser: argparse.ArgumentParser) -> None:
    """Before anything is measured, see that what is measured can be kept."""
    if path.suffix != ".json":
        parser.error(f"--out {path}: the result is JSON; give a name that ends in .json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        parser.error(f"--out {path} cannot be written ({error.strerror}); choose another folder")


def main() -> None:
    args = arguments()
    try:
        measure(args)
    except KeyboardInterrupt:
        raise SystemExit("interrupted; nothing is written before the end") from None


def measure(args: argparse.Namespace) -> None:
    problem = Problem(
        args.n_head, args.seq_len, args.head_dim, args.device, getattr(torch, args.dtype)
    )
    _progress("correctness")
    errors, left_out = pass_gate(args.contenders, replace(problem, T=GATE_LENGTH))
    sweep = Sweep(errors, args.seconds)
    by_length = {}
    for T in sorted({*args.lengths, args.seq_len}):
        _progress(f"{T:,} positions")
        here = replace(problem, T=T)
        rounds = args.rounds if args.seq_len == T else min(3, args.rounds)
        by_length[T] = sweep.run(here, rounds)
        for contender, error in errors.items():
            row = by_length[T]["contenders"].get(str(contender))
            if row:
                row |= {
                    "relative_error": error,
                    "peak_bytes": peak_bytes(contender, here),
                }
    _progress("memory of one head")
    growth = growth_of_one_head(sweep, problem, args.growth)
    table = by_length[args.seq_len]
    result = {
        "shape": {
            "B": 1,
            "H": args.n_head,
            "T": args.seq_len,
            "D": args.head_dim,
            "dtype": args.dtype,
            "device": args.device,
        },
        **table,
        "left_out": {str(contender): why for contender, why in left_out.items()}
        | table["left_out"],
        "alternating_local_strided": alternating(table["contenders"], args.engines),
        "lengths": {T: found for T, found in by_length.items() if args.seq_len != T},
        "peak_bytes_one_head": growth,
    }
    print_contenders(result)
    print_by_length(result)
    write_result(args.out, result, "local-attention")
    if args.out:
        from attention_plot import draw  # matplotlib takes a second to import

        draw(result, Path(args.out).with_suffix(".png"))


def _progress(what: str) -> None:
    print(f"measuring: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
