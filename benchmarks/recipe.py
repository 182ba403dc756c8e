"""What each choice of the preset ``cpu`` buys: the same few steps with one choice undone at a time.

    python benchmarks/recipe.py --data FILE --out benchmarks/results/recipe.json
    python benchmarks/recipe.py --data FILE --steps 400 --set "recall=0" --set "lr=0.02 recall=3"

All trials see the same windows in the same order, one seed each, so that small differences mean
nothing. They are compared at equal steps; the seconds per
step stand beside them, for a choice may cost more than it buys.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
import yaml
from provenance import write_result

from sparse_tx.config import RunConfig, preset_text
from sparse_tx.data import prepare_corpus
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="stdlib")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--eval_bytes", type=int, default=131_072)
    parser.add_argument("--trials", help="names of trials, separated by ;")
    parser.add_argument(
        "--set", action="append", help="a trial of your own: settings as NAME=YAML, by spaces"
    )
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
    corpus = prepare_corpus(args.data, cache_dir=default_cache_dir())
    results = {}
    for name, settings in trials.items():
        config = RunConfig.from_flat(base | settings)
        config = replace(config, training=replace(config.training, max_minutes=None))
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
            for _ in range(args.steps):
                begin = time.monotonic()
                losses.append(trainer.take_step())
                seconds.append(time.monotonic() - begin)
            valid = trainer.evaluate(args.eval_bytes)
        results[name] = {
            "settings": settings,
            "train_bpb": losses,
            "valid_bpb": valid.bpb,
            "median_step_s": median(seconds),
            "n_parameters": trainer.model.n_parameters(),
        }
        print(f"{valid.bpb:.3f} bits per byte, {median(seconds):.3f} s a step: {name}", flush=True)
    write_result(args.out, {"steps": args.steps, "protocol": valid.protocol, "trials": results})


if __name__ == "__main__":
    main()
