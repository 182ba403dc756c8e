"""The three ablations of the CBAM paper, every row, at a size that two cores train many times.

    python benchmarks/cbam_ablation.py --out benchmarks/results/cbam_ablation.json
    python benchmarks/cbam_ablation.py --quick

Small natural data cannot resolve differences of a third of a point, so there are mechanism tasks
(mechanisms.py), which ask for one part of a gate, beside cluttered digits. A seed decides images,
order, and the weights that all arms have in common; arms are compared by their differences over
seeds, and each comparison gets a verdict against the published direction: reproduced, not resolved
or reversed. Not resolved says that this experiment is too small for the difference, not that there
is none.

One run trains one arm on one task from one seed, with one thread; five seeds are 200 runs, which
took 39 minutes on two cores. Finished runs are kept beside --out, and --resume goes on from them,
with further seeds too. --quick only shows that all works: its digits are drawn, and its errors mean
nothing.
"""

import argparse
import time
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from cbam_tables import INTERVALS, PUBLISHED, compare, count_verdicts, markdown
from digits import cluttered_digits, drawn_digits, mnist_digits, split_digits
from mechanisms import MECHANISMS
from provenance import write_result
from seeded_runs import finish_runs
from torch import Tensor, nn

from sparse_tx.errors import UserError
from sparse_tx.profiler.processes import Tell
from sparse_tx.vision import CBAM
from sparse_tx.vision.small_networks import SmallResNet

# The settings of CBAM for each row of the tables; "avg" is Squeeze-and-Excitation.
ARMS = {
    "none": None,
    "avg": {"order": "channel", "pools": ("avg",)},
    "max": {"order": "channel", "pools": ("max",)},
    "avg+max": {"order": "channel"},
    "conv k3": {"descriptor": "conv", "kernel_size": 3},
    "conv k7": {"descriptor": "conv", "kernel_size": 7},
    "pool k3": {"descriptor": "pool", "kernel_size": 3},
    "pool k7": {"descriptor": "pool", "kernel_size": 7},
    "spatial first": {"order": "spatial_channel"},
    "parallel": {"order": "parallel"},
}
DIGITS = "cluttered digits"
LOSSES_KEPT = 10
# A running average's share of each batch, for the spatial gate's norm too: 0.01, as released, would
# not forget its start in so few steps.
NORM_MOMENTUM = 0.1
GATES_PER_SEED = 1000  # their seeds lie apart


@dataclass(frozen=True, kw_only=True)
class Training:
    """How one task is learnt, by all arms alike.

    Attributes:
        task: a mechanism task, or cluttered digits.
        channels: of the stages of the network.
        blocks: of each stage.
        stride: of the first convolution.
        reduction: of the channel gates: 16, as published, would leave one hidden unit.
        steps: of AdamW, whose rate rises over the first tenth and falls to 0 as a cosine.
        batch_size: images of a step.
        lr: the highest rate.
        weight_decay: decoupled.
        train_images: made by the seed; steps go through them in an order of their own each time.
        test_images: made by the seed.
        drawn: whether digits are drawn ones; else they are those of MNIST.
    """

    task: str
    channels: tuple[int, ...] = (16, 32)
    blocks: int = 1
    stride: int = 1
    reduction: int = 4
    steps: int = 300
    batch_size: int = 64
    lr: float = 4e-3
    weight_decay: float = 1e-3
    train_images: int = 19_200
    test_images: int = 4000
    drawn: bool = False


TRAININGS = [
    *(Training(task=task) for task in MECHANISMS),
    Training(task=DIGITS, channels=(16, 32, 64), stride=2, steps=500, train_images=32_000),
]
# Few images seen often: their loss falls within a few steps.
QUICK = {"channels": (8, 16), "steps": 20, "batch_size": 16, "train_images": 32, "lr": 1e-2}
QUICK |= {"test_images": 50, "drawn": True}

CANVAS, PIECES, PIECE_EDGE = 40, 6, 8


def make_network(arm: str, training: Training, classes: int, seed: int) -> SmallResNet:
    """The network of an arm; of one seed, arms have the same weights in all they have in common."""

    numbers = count()

    def gate(channels: int) -> CBAM:
        # Of draws of its own, so that gates of arms that have a part in common share its weights.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(GATES_PER_SEED * (seed + 1) + next(numbers))
            made = CBAM(channels, training.reduction, **ARMS[arm])
        for part in made.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = NORM_MOMENTUM
        return made

    torch.manual_seed(seed)
    return SmallResNet(
        training.channels,
        training.blocks,
        classes,
        None if ARMS[arm] is None else gate,
        stride=training.stride,
    )


def make_images(training: Training, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images ``(N, 1, E, E)`` float32 and labels ``(N,)`` to train on, and those to test on."""
    counts = (training.train_images, training.test_images)
    if training.task in MECHANISMS:
        rng = np.random.default_rng(seed)
        made = [MECHANISMS[training.task].make(count, rng) for count in counts]
    else:
        digits = drawn_digits(100, seed) if training.drawn else mnist_digits()
        parts = split_digits(digits, seed=seed, n_train=len(digits.labels) * 4 // 5)
        made = [
            cluttered_digits(
                part,
                count,
                canvas=CANVAS,
                pieces=PIECES,
                piece_edge=PIECE_EDGE,
                seed=2 * seed + which,
            )
            for which, (part, count) in enumerate(zip(parts, counts, strict=True))
        ]
        made = [(images.astype(np.float32) / 255, labels) for images, labels in made]
    (train, train_labels), (test, test_labels) = (
        (torch.from_numpy(images)[:, None], torch.from_numpy(labels)) for images, labels in made
    )
    return train, train_labels, test, test_labels


def train_arm(tell: Tell, settings: dict) -> None:
    """One run: tells the test error, and how the loss fell.

    Args:
        settings: ``arm``, ``seed`` and what ``Training`` has.
    """
    began = time.monotonic()
    arm, seed = settings["arm"], settings["seed"]
    rest = {name: value for name, value in settings.items() if name not in ("arm", "seed")}
    training = Training(**rest | {"channels": tuple(rest["channels"])})
    images, labels, test, test_labels = make_images(training, seed)
    network = make_network(arm, training, classes_of(training.task), seed)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=training.lr, weight_decay=training.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: rate_at(step, training.steps)
    )
    losses = []
    for batch in batches(len(images), training, seed):
        loss = F.cross_entropy(network(images[batch]), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    result = {
        "error_percent": error_percent(network, test, test_labels),
        "train_loss_nats": [float(part.mean()) for part in np.array_split(losses, LOSSES_KEPT)],
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "seconds": time.monotonic() - began,
    }
    tell("result", result)


def classes_of(task: str) -> int:
    return MECHANISMS[task].classes if task in MECHANISMS else 10


def rate_at(step: int, steps: int) -> float:
    """The share of the highest rate: up over the first tenth of the steps, then down to 0."""
    warm_up = max(1, steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return (1 + np.cos(np.pi * (step - warm_up) / (steps - warm_up))) / 2


def batches(n_images: int, training: Training, seed: int) -> list[Tensor]:
    """Indices of the images of each step, the same for all arms: one order after the other."""
    rng = torch.Generator().manual_seed(seed)
    needed, orders = training.steps * training.batch_size, []
    while sum(map(len, orders)) < needed:
        orders.append(torch.randperm(n_images, generator=rng))
    return list(torch.cat(orders)[:needed].split(training.batch_size))


@torch.no_grad()
def error_percent(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    network.eval()
    chunks = zip(images.split(500), labels.split(500), strict=True)
    wrong = sum((network(some).argmax(1) != own).sum().item() for some, own in chunks)
    return 100 * wrong / len(labels)


def report(
    trainings: list[Training],
    seeds: list[int],
    wanted: list[dict],
    runs: list[dict],
    workers: int,
) -> dict:
    """All runs, their errors by task and arm, and what comes of every comparison."""
    errors = {one.task: {arm: [] for arm in ARMS} for one in trainings}
    parameters = {one.task: {} for one in trainings}
    for settings, run in zip(wanted, runs, strict=True):
        errors[settings["task"]][settings["arm"]].append(run["error_percent"])
        parameters[settings["task"]][settings["arm"]] = run["parameters"]
    comparisons = compare(errors)
    return {
        "arms": ARMS,
        "trainings": [asdict(one) for one in trainings],
        "optimiser": "AdamW, rate up over a tenth of the steps and down to 0 as a cosine",
        "norm_momentum": NORM_MOMENTUM,
        "threads_of_a_run": 1,
        "workers": workers,
        "digits": {"canvas": CANVAS, "pieces": PIECES, "piece_edge": PIECE_EDGE},
        "seeds": seeds,
        "published_error_percent": PUBLISHED,
        "published_in": "arXiv:1807.06521, tables 1 to 3: ResNet-50, ImageNet-1K, top-1",
        "error_percent": errors,
        "parameters": parameters,
        "comparisons_in": "percentage points of error, the arm's less the other's",
        "intervals": INTERVALS,
        "comparisons": comparisons,
        "verdicts": {one.task: count_verdicts(comparisons, one.task) for one in trainings},
        "runs": [
            {name: settings[name] for name in ("task", "arm", "seed")} | run
            for settings, run in zip(wanted, runs, strict=True)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seeds", default="1,2,3,4,5,6,7,8,9,10", help="two or more, separated by ,"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--quick", action="store_true", help="seconds; two seeds if none are given")
    parser.add_argument("--resume", action="store_true", help="keep the finished runs beside --out")
    parser.add_argument("--out", help="a name that ends in .json")
    args = parser.parse_args()
    try:
        seeds = [int(seed) for seed in args.seeds.split(",")]
    except ValueError:
        parser.error(f"--seeds is '{args.seeds}'; give whole numbers separated by , such as 1,2,3")
    if args.quick and args.seeds == parser.get_default("seeds"):
        seeds = seeds[:2]
    if len(set(seeds)) < max(2, len(seeds)) or min(seeds) < 0:
        parser.error(f"--seeds is '{args.seeds}'; give two or more different ones from 0 up")
    if args.workers < 1:
        parser.error(f"--workers is {args.workers}; give 1 or more")
    if args.out and not args.out.endswith(".json"):
        parser.error(f"--out is '{args.out}'; give a name that ends in .json")
    if args.resume and not args.out:
        parser.error("--resume needs the --out of the run to go on with")
    torch.set_num_threads(1)  # of a worker too
    trainings = [replace(one, **QUICK) for one in TRAININGS] if args.quick else TRAININGS
    wanted = [
        {"arm": arm, "seed": seed} | asdict(one) | {"channels": list(one.channels)}
        for seed in seeds  # first, so that what is there after an interruption can be compared
        for one in trainings
        for arm in ARMS
    ]
    try:
        if not args.quick:
            mnist_digits()  # missing, they are missed now
        with TemporaryDirectory() as folder:
            journal = Path(args.out or f"{folder}/runs.json").with_suffix(".runs.jsonl")
            runs = finish_runs(train_arm, wanted, journal, workers=args.workers, resume=args.resume)
    except UserError as error:
        parser.error(str(error))
    result = report(trainings, seeds, wanted, runs, args.workers)
    write_result(args.out, result, "mlxtend", "scipy")
    print("\n".join(markdown(result["error_percent"], result["comparisons"])))


if __name__ == "__main__":
    main()
