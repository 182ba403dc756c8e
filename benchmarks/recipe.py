"""What each choice of the preset ``cpu`` buys: the same few steps with one choice undone at a time.

    python benchmarks/recipe.py --data FILE --out benchmarks/results/recipe.json
    python benchmarks/recipe.py --data FILE --steps 400 --set "recall=0" --set "lr=0.02 recall=3"
    python benchmarks/recipe.py --data FILE --steps 400 --seeds 1,2,3 --trials "cpu;dense"

Of one seed, all trials see the same windows in the same order; each further seed brings other
windows and weights. Of one seed, small differences mean nothing; of several, the differences to the
first trial have a mean and a standard deviation. Trials are compared at equal steps; the seconds
per step stand beside them, for a choice may cost more than it buys.
"""

import argparse
import time
from pathlib import Path
from statistics import mean, median, stdev
from tempfile import TemporaryDirectory

import torch
import yaml
from provenance import write_result

from sparse_tx.config import RunConfig, preset_text
from sparse_tx.data import Corpus, prepare_corpus
from sparse_tx.folders import default_cache_dir
from sparse_tx.training import Reporter, Trainer

# The settings of the preset's look-ups undone, for trials of what they replace.
NO_LOOKUPS = {"ngrams": [], "recall": 0}

TRIALS = {
    "cpu": {},
    "no n-grams": {"ngrams": []},
    "no recall": {"recall": 0},
    "neither": NO_LOOKUPS,
    "neither, no earlier tokens in the embedding": NO_LOOKUPS | {"recent_tokens": 1},
    "AdamW at the same rate": {"optimiser": "adamw"},
    "AdamW at 0.003": {"optimiser": "adamw", "lr": 0.003},
    "initial weights of the paper's code": {"init": "paper-code"},
    "initial weights of the paper": {"init": "paper"},
    "no normalised queries and keys": {"qk_norm": False},
    "gelu": {"activation": "gelu"},
    "rmsnorm": {"norm": "rmsnorm"},
    "fixed for strided": {"pattern": "local:128,fixed:128:8"},
    "dense": {"pattern": "dense"},
}


def _settings(text: str) -> dict:
    """The settings of a trial, from ``NAME=YAML NAME=YAML``."""
    return {name: yaml.safe_load(value) for name, value in (p.split("=", 1) for p in text.split())}


def take_trial(config: RunConfig, corpus: Corpus, eval_bytes: int) -> dict:
    """Train for the configuration's steps, and score the end."""
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            config,
            corpus,
            Path(folder),
            Reporter(),
            device=torch.device("cpu"),
            started=time.monotonic(),
        )
        seconds, losses = [], []
        while not trainer.is_done():
            begin = time.monotonic()
            losses.append(trainer.take_step())
            seconds.append(time.monotonic() - begin)
        valid = trainer.evaluate(eval_bytes)
    return {
        "seed": config.training.seed,
        "train_bpb": losses,
        "valid_bpb": valid.bpb,
        "protocol": valid.protocol,
        "median_step_s": median(seconds),
        "n_parameters": trainer.model.n_parameters(),
        "engine": trainer.engine()[0],
        "skipped_steps": trainer.bad_steps.skipped,
        "epochs": trainer.loader.epoch,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="stdlib")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--eval_bytes", type=int, default=131_072)
    parser.add_argument("--trials", help="names of trials, separated by ;")
    parser.add_argument(
        "--set", action="append", help="a trial of your own: settings as NAME=YAML, by spaces"
    )
    parser.add_argument("--seeds", default="1", help="separated by ,")
    parser.add_argument("--threads", type=int, help="of torch; its own choice if not given")
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    trials = TRIALS
    if args.set:
        trials = {text: _settings(text) for text in args.set}
    elif args.trials:
        trials = {name: TRIALS[name] for name in args.trials.split(";")}
    base = yaml.safe_load(preset_text("cpu")) | {"data": args.data, "max_steps": args.steps}
    base["max_minutes"] = None
    corpus = prepare_corpus(args.data, cache_dir=default_cache_dir())
    results = {}
    for name, settings in trials.items():
        runs = []
        for seed in map(int, args.seeds.split(",")):
            config = RunConfig.from_flat(base | settings | {"seed": seed})
            runs.append(take_trial(config, corpus, args.eval_bytes))
            print(
                f"{runs[-1]['valid_bpb']:.4f} bits per byte, {runs[-1]['median_step_s']:.3f} s a"
                f" step: {name}, seed {seed}",
                flush=True,
            )
        results[name] = {"settings": settings, "runs": runs}
        first = next(iter(results.values()))["runs"]
        if len(runs) > 1 and runs is not first:
            apart = [a["valid_bpb"] - b["valid_bpb"] for a, b in zip(runs, first, strict=True)]
            results[name] |= {"minus_first": mean(apart), "minus_first_std": stdev(apart)}
            print(f"  minus the first trial: {mean(apart):+.4f}, deviation {stdev(apart):.4f}")
    write_result(args.out, {"steps": args.steps, "trials": results})


if __name__ == "__main__":
    main()
