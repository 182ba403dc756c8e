"""What position and channel attention are worth in segmentation, and what sparse patterns keep.

    python benchmarks/dual_segmentation.py --out benchmarks/results/dual_segmentation.json
    python benchmarks/dual_segmentation.py --costs --out benchmarks/results/position_costs.json

Scenes of freely placed digits (see ``scenes.py``), two of whose kinds have another class where
somewhere in the scene a digit is framed. Every arm is the same small network with DANet's two
branches, of which one attention, both or none are undone: then a position or a channel reads itself
alone. All arms have equal parameters, and of one seed equal initial weights, training scenes and
test scenes; train and test are of disjoint source digits. What differs is who reads whom:

    none, channel, position, both      DANet's ablation, position attention dense
    the others                         position attention by another pattern, without channel

The mean IoU is that of one confusion matrix over all test scenes of a seed. Differences to "none"
and to dense position attention are paired by seed and test scene, with bootstrap intervals of 95 %.
Pairs are counted by the pattern over all its steps. Time is the median of a training step's, with
as many other runs beside it as there are workers; peak bytes are those of one training step beyond
what there was at its start, in a fresh process.

On two cores this takes about half an hour: 45 runs of some 70 seconds, two at a time. Each finished
run goes to a journal beside ``--out``; with ``--resume`` it is not repeated.

``--costs`` measures the position attention alone, by the size of its map; give it a quiet machine.
"""

import argparse
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from tempfile import TemporaryDirectory

import numpy as np
import torch
from digits import mnist_digits
from position_costs import measure_costs, print_costs
from provenance import write_result
from scenes import CLASSES, CONTEXT_CLASSES
from seeded_runs import finish_runs
from segmentation_scores import ious, mean_iou, paired_difference
from segmentation_training import ARMS, BASE, DENSE, Run, tell_peak, train_and_test

from sparse_tx.errors import UserError
from sparse_tx.profiler.processes import run_in_fresh_process

FULL = {
    "digits": "mnist",
    "size": 80,
    "channels": 32,
    "steps": 1500,
    "batch_size": 16,
    "lr": 3e-3,
    "test_scenes": 1000,
    "groups": 25,
}
# Shows that everything runs and that losses fall; its scores mean nothing.
QUICK = FULL | {
    "digits": "drawn",
    "channels": 8,
    "steps": 40,
    "batch_size": 4,
    "lr": 1e-2,
    "test_scenes": 8,
    "groups": 2,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seeds", default="1,2,3,4,5", help="separated by ,; with --quick 1,2 if none are given")
    add("--steps", type=int, help=f"of a run (default: {FULL['steps']})")
    add("--arms", default=";".join(ARMS), help="separated by ;")
    add("--workers", type=int, default=2, help="processes at a time, of one thread each")
    add("--quick", action="store_true", help="a tiny version, of drawn digits")
    add("--resume", action="store_true", help="keep the finished runs of the journal")
    add("--costs", action="store_true", help="measure the position attention alone, and no more")
    add("--sides", default="16,32,64,128", help="with --costs: edges of the square maps")
    add("--rounds", type=int, default=5, help="with --costs: of timed passes")
    add("--out", help="where the JSON goes, with pictures beside it as PNG")
    args = parser.parse_args()
    if args.quick and args.seeds == parser.get_default("seeds"):
        args.seeds = "1,2"
    args.seeds = _numbers(parser, "seeds", args.seeds, least=0)
    args.sides = sorted(_numbers(parser, "sides", args.sides, least=2))
    for name in ("workers", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; give 1 or more")
    if args.steps is not None and args.steps < 1:
        parser.error(f"--steps is {args.steps}; give 1 or more")
    args.arms = args.arms.split(";")
    for arm in args.arms:
        if arm not in ARMS:
            parser.error(f"--arms has '{arm}'; the arms are {'; '.join(ARMS)}")
    for arm in (BASE, DENSE):  # all others are set beside these
        if arm not in args.arms:
            parser.error(f"--arms lacks '{arm}', which the others are compared with; add it")
    if args.out and Path(args.out).suffix != ".json":
        parser.error(f"--out {args.out}: the result is JSON; give a name that ends in .json")
    if args.resume and not args.out:
        parser.error("--resume takes up the journal beside --out; give --out")
    return args


def _numbers(parser: argparse.ArgumentParser, name: str, text: str, least: int) -> list[int]:
    """Different whole numbers, separated by commas."""
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        parser.error(f"--{name} is '{text}'; give whole numbers, separated by ,")
    if min(found) < least or len(set(found)) < len(found):
        parser.error(f"--{name} is '{text}'; give different numbers, each {least} or more")
    return found


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    try:
        if args.costs:
            take_costs(args)
        else:
            with TemporaryDirectory() as folder:
                take_runs(args, Path(args.out or Path(folder) / "result.json"))
    except UserError as error:
        print(f"dual_segmentation: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        left = "nothing is written before the end" if args.costs else "--resume goes on from here"
        raise SystemExit(f"interrupted; {left}") from None


def take_costs(args: argparse.Namespace) -> None:
    result = measure_costs(args.sides, rounds=args.rounds)
    print_costs(result)
    write_result(args.out, result)
    if args.out:
        from segmentation_pictures import draw_costs  # matplotlib takes a second to import

        draw_costs(result, Path(args.out).with_suffix(".png"))


def take_runs(args: argparse.Namespace, out: Path) -> None:
    """Train and test every arm with every seed; beside ``out`` lie the journal and the weights."""
    settings = QUICK if args.quick else FULL
    if args.steps:
        settings = settings | {"steps": args.steps}
    runs = [
        Run(arm=arm, seed=seed, **settings)
        for seed in args.seeds  # first, so that what is there after an interruption can be compared
        for arm in args.arms
    ]
    if settings["digits"] == "mnist":
        mnist_digits()  # missing, they are missed now
    weights = out.with_suffix(".weights")
    weights.mkdir(parents=True, exist_ok=True)
    results = finish_runs(
        partial(train_and_test, folder=str(weights)),
        [asdict(run) for run in runs],
        out.with_suffix(".runs.jsonl"),
        workers=args.workers,
        resume=args.resume,
    )
    n_parameters = {result["n_parameters"] for result in results}
    assert len(n_parameters) == 1, f"arms of unequal parameters: {n_parameters}"
    rows = rows_of_arms(runs, results)
    for run in runs[: len(args.arms)]:
        rows[run.arm]["peak_bytes"] = peak_of_step(run)
    result = {
        "settings": settings | {"seeds": args.seeds, "workers": args.workers},
        "classes": list(CLASSES),
        "context_classes": [CLASSES[c] for c in CONTEXT_CLASSES],
        "n_parameters": n_parameters.pop(),
        "arms": rows,
    }
    print_table(result)
    write_result(args.out, result, "mlxtend")
    if args.out:
        from segmentation_pictures import draw_attention, draw_masks

        of_first_seed = runs[: len(args.arms)]
        draw_masks(of_first_seed, weights, out.with_name(out.stem + "-masks.png"))
        draw_attention(of_first_seed, weights, out.with_name(out.stem + "-attention.png"))


def peak_of_step(run: Run) -> int:
    """Bytes that a training step takes beyond what was there before it, in a fresh process."""
    ending = run_in_fresh_process(tell_peak, run)
    if ending.cause:
        raise MemoryError(f"no memory was left for a step of '{run.arm}'")
    return ending.told["peak"][0]


def rows_of_arms(runs: list[Run], results: list[dict]) -> dict[str, dict]:
    """What is reported of every arm, in the order of the runs."""
    by_arm: dict[str, list[tuple[Run, dict]]] = {}
    for run, result in zip(runs, results, strict=True):
        by_arm.setdefault(run.arm, []).append((run, result))
    counts = {
        arm: np.array([result["confusion"] for _, result in own]) for arm, own in by_arm.items()
    }  # (seeds, groups, classes, classes)
    rows = {}
    for arm, own in by_arm.items():
        of_seeds = counts[arm].sum(1)
        run = own[0][0]
        rows[arm] = {
            "pattern": run.position,
            "channel_form": ARMS[arm][1],
            "miou": mean_iou(of_seeds).tolist(),
            "context_miou": mean_iou(of_seeds, CONTEXT_CLASSES).tolist(),
            "class_ious": np.nan_to_num(ious(of_seeds.sum(0))).tolist(),
            "minus_none": paired_difference(counts[arm], counts[BASE]),
            "minus_dense": paired_difference(counts[arm], counts[DENSE]),
            "pairs": run.pairs,
            "step_s": median(result["step_s"] for _, result in own),
            "losses": [result["losses"] for _, result in own],
            "alpha": [result["alpha"] for _, result in own],
            "beta": [result["beta"] for _, result in own],
        }
    return rows


def print_table(result: dict) -> None:
    """As markdown."""
    settings = result["settings"]
    print(
        f"seeds {settings['seeds']}; {settings['steps']} steps of {settings['batch_size']}"
        f" scenes of {settings['size']} x {settings['size']} pixels,"
        f" {settings['test_scenes']} test scenes a seed;"
        f" {result['n_parameters']:,} parameters in every arm\n"
    )
    print(
        "| arm | pattern | mIoU | of context classes | minus none | minus dense position | pairs"
        " | step, ms | peak, MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for arm, row in result["arms"].items():
        cells = [
            arm,
            f"`{row['pattern']}`" if row["pattern"] else "",
            _with_spread(row["miou"]),
            _with_spread(row["context_miou"]),
            "" if arm == BASE else _interval(row["minus_none"]),
            "" if arm == DENSE else _interval(row["minus_dense"]),
            f"{row['pairs']:,}",
            f"{row['step_s'] * 1e3:.0f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
        ]
        print("| " + " | ".join(cells) + " |")
    print()


def _with_spread(values: list[float]) -> str:
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def _interval(found: dict) -> str:
    return f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


if __name__ == "__main__":
    main()
