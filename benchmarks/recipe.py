"""What each choice of the preset ``cpu`` buys: the same few steps with one choice undone at a time.

    python benchmarks/recipe.py --data FILE --out benchmarks/results/recipe.json

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

TRIALS = {
    "cpu": {},
    "AdamW at the same rate": {"optimiser": "adamw"},
    "AdamW at 0.003": {"optimiser": "adamw", "lr": 0.003},
    "no earlier tokens in the embedding": {"recent_tokens": 1},
    "six recent tokens": {"recent_tokens": 6},
    "initial weights of the paper's code": {"init": "paper-code"},
    "initial weights of the paper": {"init": "paper"},
    "no normalised queries and keys": {"qk_norm": False},
    "gelu": {"activation": "gelu"},
    "rmsnorm": {"norm": "rmsnorm"},
    "fixed for strided": {"pattern": "local:128,fixed:128:8"},
    "dense": {"pattern": "dense"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="stdlib")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--eval_bytes", type=int, default=131_072)
    parser.add_argument("--trials", help="names of trials, separated by ;")
    parser.add_argument("--out")
    args = parser.parse_args()
    base = yaml.safe_load(preset_text("cpu")) | {"data": args.data, "max_steps": args.steps}
    corpus = prepare_corpus(args.data, cache_dir=default_cache_dir())
    results = {}
    for name in args.trials.split(";") if args.trials else TRIALS:
        config = RunConfig.from_flat(base | TRIALS[name])
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
            "settings": TRIALS[name],
            "train_bpb": losses,
            "valid_bpb": valid.bpb,
            "median_step_s": median(seconds),
            "n_parameters": trainer.model.n_parameters(),
        }
        print(f"{valid.bpb:.3f} bits per byte, {median(seconds):.3f} s a step: {name}", flush=True)
    write_result(args.out, {"steps": args.steps, "protocol": valid.protocol, "trials": results})


if __name__ == "__main__":
    main()
