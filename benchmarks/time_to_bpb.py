"""Bits per byte at equal wall clock: the preset ``cpu`` against what a user would train instead.

    python benchmarks/time_to_bpb.py --data FILE --minutes 10 --tune --out RESULT.json

Every contender trains in a process of its own, one after the other, for the same time, on the same
training split. Ours are the train command as users run it, whose time includes its own last
evaluation; a baseline's whole time is training. All are then scored on the same validation bytes by
one protocol: windows of the model's own context, moved by half of it, so that every byte has at
least half a context before it. ``--tune`` first looks for the baselines' best settings by shorter
runs, one setting changed at a time. A third of the time is given to our model as well.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from dense_baseline import (
    DenseSettings,
    XTransformersSettings,
    bits_per_byte,
    train_dense,
    train_x_transformers,
)
from provenance import write_result

from sparse_tx.checkpoint import load_checkpoint
from sparse_tx.data import prepare_corpus
from sparse_tx.folders import default_cache_dir

BASELINES = {
    "dense": (DenseSettings, train_dense),
    "x-transformers": (XTransformersSettings, train_x_transformers),
}
# For each baseline, what is tried in turn, each from the best so far.
GRIDS = {
    "dense": {
        "lr": (1e-3, 2e-3, 6e-3),
        "n_embd": (96, 192),
        "n_layer": (3, 6),
        "seq_len": (128, 512),
        "batch_size": (8, 32),
    },
    "x-transformers": {"lr": (1e-3, 6e-3), "dim": (192,), "depth": (3, 6), "seq_len": (512, 256)},
}
OURS = {
    "sparse_tx": (1.0, []),
    "sparse_tx, a third of the time": (1 / 3, []),
    "sparse_tx, dense pattern": (1.0, ["--pattern", "dense"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a text, split 90/5/5")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--tune", action="store_true", help="look for the baselines' settings")
    parser.add_argument("--tune_minutes", type=float, default=1.0)
    parser.add_argument("--contenders", default=";".join([*OURS, *BASELINES]))
    parser.add_argument("--valid_bytes", type=int, default=1_000_000)
    parser.add_argument("--ours", default="", help="further flags of our train command")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out")
    parser.add_argument("--settings", help="JSON of a baseline's settings, for --run")
    parser.add_argument("--run", help="train and score this one baseline, and print JSON")
    args = parser.parse_args()
    if args.run:
        print(json.dumps(run_baseline(args)))
        return
    results, trials = {}, {}
    for name in args.contenders.split(";"):
        if name in OURS:
            results[name] = run_ours(args, name)
        else:
            settings = asdict(BASELINES[name][0]())
            if args.tune:
                settings, trials[name] = tune(args, name)
            results[name] = start_baseline(args, name, settings, args.minutes, args.valid_bytes)
        found = results[name]
        print(
            f"{name}: {found['bpb']:.4f} bits per byte after {found['minutes']:.2f} minutes,"
            f" {found['tokens']:,} tokens, {found['n_parameters']:,} parameters",
            flush=True,
        )
    protocol = (
        f"first {args.valid_bytes:,} bytes of the validation split; windows of the model's context,"
        " moved by half of it, each byte scored once with at least half a context before it"
    )
    write_result(
        args.out,
        {"minutes": args.minutes, "protocol": protocol, "contenders": results, "tuning": trials},
        "x-transformers",
    )


def corpus_of(args: argparse.Namespace):
    return prepare_corpus(args.data, cache_dir=default_cache_dir())


def run_baseline(args: argparse.Namespace) -> dict:
    """Train and score one baseline in this process."""
    settings_type, train = BASELINES[args.run]
    settings = json.loads(args.settings)
    if "betas" in settings:
        settings["betas"] = tuple(settings["betas"])
    corpus = corpus_of(args)
    begin = time.monotonic()
    trained = train(settings_type(**settings), corpus.train, 60 * args.minutes, args.seed)
    minutes = (time.monotonic() - begin) / 60
    return {
        "bpb": bits_per_byte(trained.logits, trained.context, corpus.valid[: args.valid_bytes]),
        "minutes": minutes,
        "steps": trained.steps,
        "tokens": trained.tokens,
        "n_parameters": trained.n_parameters,
        "settings": trained.settings,
    }


def start_baseline(
    args: argparse.Namespace, name: str, settings: dict, minutes: float, valid_bytes: int
) -> dict:
    """The same in a fresh process."""
    command = [sys.executable, __file__, f"--data={args.data}", f"--run={name}"]
    command += [f"--settings={json.dumps(settings)}", f"--minutes={minutes}"]
    command += [f"--valid_bytes={valid_bytes}", f"--seed={args.seed}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def tune(args: argparse.Namespace, name: str) -> tuple[dict, list[dict]]:
    """Change one setting at a time; returns the best settings and all trials."""
    best = asdict(BASELINES[name][0]())
    trials = [start_baseline(args, name, best, args.tune_minutes, 131_072)]
    for key, values in GRIDS[name].items():
        for value in values:
            changed = best | {key: value}
            if key == "seq_len":  # as many tokens a step as before
                changed["batch_size"] = max(1, best["batch_size"] * best["seq_len"] // value)
            trials.append(start_baseline(args, name, changed, args.tune_minutes, 131_072))
            print(f"  {name} {key} {value}: {trials[-1]['bpb']:.4f}", flush=True)
        best = min(trials, key=lambda trial: trial["bpb"])["settings"]
    return best, trials


def run_ours(args: argparse.Namespace, name: str) -> dict:
    """Run the train command, and score what it leaves."""
    share, flags = OURS[name]
    minutes = share * args.minutes
    with TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).parents[1] / "train_lm.py")]
        command += [f"--data={args.data}", f"--out={folder}", f"--seed={args.seed}", *flags]
        command += shlex.split(args.ours)
        command += [f"--max_minutes={minutes}", "--final_eval_bytes=131072"]
        begin = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took = (time.monotonic() - begin) / 60
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").open()]
        curve = [
            {key: line[key] for key in ("elapsed_s", "tokens", "train_bpb", "valid_bpb")}
            for line in lines[:: max(1, len(lines) // 60)]
        ]
        model, _, config = load_checkpoint(folder)
        start = model.start_token

        def logits(windows: torch.Tensor) -> torch.Tensor:
            """Of windows that begin as those of training do."""
            windows = windows.clone()
            windows[:, 0] = start
            return model(windows)

        text = corpus_of(args).valid[: args.valid_bytes]
        return {
            "bpb": bits_per_byte(logits, config.model.seq_len, text),
            "minutes": took,
            "steps": lines[-1]["step"],
            "tokens": lines[-1]["tokens"],
            "n_parameters": model.n_parameters(),
            "settings": config.to_flat(),
            "curve": curve,
        }


if __name__ == "__main__":
    main()
