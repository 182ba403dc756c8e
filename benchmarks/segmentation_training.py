"""One network trained on scenes, and tested: what a fresh process does for one arm and one seed."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import ceil, cos, pi, sqrt
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from digits import drawn_digits, mnist_digits, split_digits
from scenes import CLASSES, SceneMaker
from segmentation_scores import confusion_matrix
from torch import Tensor

from sparse_tx.patterns import parse_pattern
from sparse_tx.profiler.memory import (
    give_back_freed_memory,
    peak_resident_bytes,
    reset_peak,
    resident_bytes,
)
from sparse_tx.profiler.processes import Tell
from sparse_tx.vision.fcn import SmallFCN, map_edge

# Pattern of the position attention, with W for the map's width and E for the edge of a tile, and
# form of the channel attention; None where a position or a channel reads itself alone.
ARMS = {
    "none": (None, None),
    "channel": (None, "reversed"),
    "position": ("dense", None),
    "both": ("dense", "reversed"),
    "rows, then columns": ("rows:W,columns:W", None),
    "criss-cross, once": ("crisscross:W", None),
    "criss-cross, twice": ("crisscross:W*2", None),
    "local": ("tiles:W:E", None),
    "tiles, then lattice": ("tiles:W:E,lattice:W:E", None),
}
BASE, DENSE = "none", "position"
# Scenes for testing come from other streams of numbers than those for training, and from others of
# the source digits.
_TRAIN, _TEST = 1, 2
_N_DRAWN, _N_DRAWN_TRAIN = 300, 200
# Losses are kept as means over this many spans of the training.
_SPANS = 20
_WARM_UP = 0.05
_WEIGHT_DECAY = 0.01


@dataclass(frozen=True, kw_only=True)
class Run:
    """What decides a run's result: one line of the journal."""

    arm: str
    seed: int
    digits: str  # mnist, or drawn
    size: int  # edge of a scene in pixels
    channels: int
    steps: int
    batch_size: int
    lr: float
    test_scenes: int
    groups: int  # of test scenes, which the bootstrap draws

    @property
    def position(self) -> str | None:
        """The pattern of the position attention at this size."""
        pattern = ARMS[self.arm][0]
        return pattern and sized(pattern, map_edge(self.size))

    @property
    def pairs(self) -> int:
        """Pairs of positions that read each other, over all steps of the position attention."""
        return count_pairs(self.position or "local:1", map_edge(self.size) ** 2)

    def network(self) -> SmallFCN:
        """The network as it is before training: with equal weights in all arms of a seed."""
        torch.manual_seed(self.seed)
        return SmallFCN(
            len(CLASSES),
            channels=self.channels,
            position=self.position,
            channel=ARMS[self.arm][1],
        )


def sized(pattern: str, width: int) -> str:
    """A pattern with its letters W and E replaced by a map's width and the edge of its tiles."""
    return pattern.replace("W", str(width)).replace("E", str(tile_edge(width)))


def tile_edge(width: int) -> int:
    """The least divisor of ``width`` from its root up: as many tiles as a tile has positions."""
    return next(e for e in range(ceil(sqrt(width)), width + 1) if width % e == 0)


def count_pairs(pattern: str, T: int) -> int:
    """Pairs of all steps of a pattern that are applied in turn, without the triangle."""
    layers = parse_pattern(pattern).layers
    return sum(layer.at(0, 1).count_pairs(T, causal=False) for layer in layers)


def scene_makers(run: Run) -> tuple[SceneMaker, SceneMaker]:
    """Those that compose scenes to train on and to test on, of disjoint source digits."""
    if run.digits == "mnist":
        parts = split_digits(mnist_digits(), seed=run.seed)
    else:
        digits = drawn_digits(_N_DRAWN, run.seed)
        parts = split_digits(digits, seed=run.seed, n_train=_N_DRAWN_TRAIN)
    return tuple(SceneMaker(part.images, part.labels, size=run.size) for part in parts)


def as_images(scenes: np.ndarray) -> Tensor:
    """What a network gets of scenes ``(n, H, W)``: ``(n, 1, H, W)`` float32 from 0 to 1."""
    return torch.from_numpy(scenes)[:, None].float() / 255


def train_and_test(tell: Tell, settings: dict, folder: str | None = None) -> None:
    """Train one arm and tell its ``result``: losses, seconds, and the counts of every test group.

    Args:
        tell: where the result goes.
        settings: those of a ``Run``.
        folder: where the trained weights go, by arm and seed; nowhere if None.
    """
    run = Run(**settings)
    training, testing = scene_makers(run)
    model = run.network()
    losses, seconds = _train(model, run, training)
    model.eval()
    confusion = [
        confusion_matrix(predict(model, scenes), classes, len(CLASSES))
        for scenes, classes in scene_groups(run, testing)
    ]
    if folder:
        torch.save(model.state_dict(), weights_file(Path(folder), run))
    spans = np.array_split(losses, min(_SPANS, len(losses)))
    tell(
        "result",
        {
            "losses": [float(span.mean()) for span in spans],
            "step_s": median(seconds),
            "confusion": [counts.tolist() for counts in confusion],
            "n_parameters": sum(weights.numel() for weights in model.parameters()),
            "alpha": model.position_branch.attention.alpha.item(),
            "beta": model.channel_branch.attention.beta.item(),
        },
    )


def weights_file(folder: Path, run: Run) -> Path:
    """Where the trained weights of a run are."""
    return folder / f"{run.arm.replace(', ', '-').replace(' ', '-')}-{run.seed}.pt"


def scene_groups(run: Run, testing: SceneMaker) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Groups of test scenes and their classes: the same ones for all arms of a seed."""
    for group in range(run.groups):
        yield testing.compose(run.test_scenes // run.groups, (run.seed, _TEST, group))


def predict(model: SmallFCN, scenes: np.ndarray) -> np.ndarray:
    """The most likely class of every pixel of scenes, ``(n, H, W)``."""
    with torch.no_grad():
        return model(as_images(scenes)).argmax(1).numpy()


def _train(model: SmallFCN, run: Run, training: SceneMaker) -> tuple[np.ndarray, list[float]]:
    """The loss and the seconds of every step."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=run.lr, weight_decay=_WEIGHT_DECAY)
    losses, seconds = [], []
    for step in range(run.steps):
        images, target = _batch(run, training, step)
        for group in optimiser.param_groups:
            group["lr"] = run.lr * _share_of_rate((step + 0.5) / run.steps)
        begin = time.perf_counter()
        losses.append(_take_step(model, images, target, optimiser))
        seconds.append(time.perf_counter() - begin)
    return np.array(losses), seconds


def _batch(run: Run, training: SceneMaker, step: int) -> tuple[Tensor, Tensor]:
    scenes, classes = training.compose(run.batch_size, (run.seed, _TRAIN, step))
    return as_images(scenes), torch.from_numpy(classes).long()


def _take_step(
    model: SmallFCN, images: Tensor, target: Tensor, optimiser: torch.optim.Optimizer
) -> float:
    loss = F.cross_entropy(model(images), target)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()


def _share_of_rate(done: float) -> float:
    """Of the highest rate, at a point from 0 to 1 of the training: a line up, a cosine down."""
    if done < _WARM_UP:
        return done / _WARM_UP
    return (1 + cos(pi * (done - _WARM_UP) / (1 - _WARM_UP))) / 2


def tell_peak(tell: Tell, run: Run) -> None:
    """Tell the ``peak``: bytes that a training step takes beyond what was there at its start.

    Weights and the batch are there at its start; gradients and what the optimiser keeps are not.
    """
    give_back_freed_memory()
    training, _ = scene_makers(run)
    warm = Run(**asdict(run) | {"batch_size": 1})
    _one_step(warm, training)  # libraries load
    model = run.network()
    images, target = _batch(run, training, 0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=run.lr)
    reset_peak()
    before = resident_bytes()
    _take_step(model, images, target, optimiser)
    tell("peak", peak_resident_bytes() - before)


def _one_step(run: Run, training: SceneMaker) -> None:
    model = run.network()
    _take_step(model, *_batch(run, training, 0), torch.optim.AdamW(model.parameters(), lr=run.lr))
