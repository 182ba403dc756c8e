"""Bits per byte at equal wall clock: the preset ``cpu`` against what a user would train instead.

    python benchmarks/time_to_bpb.py --data FILE --minutes 10 --tune --out RESULT.json

Every contender trains in a process of its own, one after the other, for the same time, on the same
training split. Ours are the train command as users run it, whose time includes its start and its
own last evaluation; a baseline's whole time is training. All are then scored on the same validation
bytes by one protocol: windows of the model's own context, moved by half of it, so that but for the
first half window every byte has at least half a context before it. A third of the time is given to
our model as well.

``--tune`` first looks for each baseline's settings by shorter runs, one setting changed at a time,
until none of a whole round is better or the round is the last. Short runs favour small models and
high rates, so the best few of them, and the settings that it began with, then run for the whole
time, and the best of those is the contender. ``--settings_of RESULT.json`` takes the settings that
an earlier result found instead. The machine's matrix product is measured before each contender and
after it.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.util import find_spec
from math import inf, isfinite
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
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
from sparse_tx.data import Corpus, prepare_corpus
from sparse_tx.folders import default_cache_dir
from sparse_tx.profiler.machine import gemm_flops_per_s
from sparse_tx.profiler.provenance import provenance

BASELINES = {
    "dense": (DenseSettings, train_dense),
    "x-transformers": (XTransformersSettings, train_x_transformers),
}
# For each baseline, what is tried in turn, each from the best so far.
GRIDS = {
    "dense": {
        "batch_size": (4, 8),
        "lr": (1.5e-3, 6e-3),
        "seq_len": (128, 512),
        "n_layer": (3, 6),
        "n_embd": (96, 192),
    },
    "x-transformers": {
        "batch_size": (1, 2),
        "lr": (1.5e-3, 6e-3),
        "seq_len": (256, 512),
        "depth": (3, 6),
        "dim": (96, 192),
    },
}
# The context of the preset; that of a baseline is smaller, and divides it.
LARGEST_CONTEXT = 4096
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
    parser.add_argument("--tune_minutes", type=float, default=2.0)
    parser.add_argument("--tune_rounds", type=int, default=1)
    parser.add_argument("--finalists", type=int, default=2, help="tuned settings run in full")
    parser.add_argument("--settings_of", help="a result whose baselines' settings to take")
    parser.add_argument("--contenders", default=";".join([*OURS, *BASELINES]))
    parser.add_argument("--valid_bytes", type=int, default=1_000_000)
    parser.add_argument("--ours", default="", help="further flags of our train command")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out")
    parser.add_argument("--resume", action="store_true", help="keep the contenders of --out")
    parser.add_argument("--settings", help="JSON of a baseline's settings, for --run")
    parser.add_argument("--run", help="train and score this one baseline, and print JSON")
    args = parser.parse_args()
    if args.run:
        print(json.dumps(run_baseline(args)))
        return
    contenders = args.contenders.split(";")
    if "x-transformers" in contenders and find_spec("x_transformers") is None:
        parser.error('x-transformers is not installed; pip install ".[bench]"')
    results, trials = {}, {}
    if args.resume and Path(args.out).exists():
        earlier = json.loads(Path(args.out).read_text())
        results, trials = earlier["contenders"], earlier["tuning"]
    for name in contenders:
        if name in results:
            continue
        before = gemm_flops_per_s("cpu", torch.float32)
        if name in OURS:
            results[name] = run_ours(args, name)
        else:
            results[name], trials[name] = contend(args, name)
        found = results[name]
        found["commit"] = provenance()["commit"]  # of several runs, by --resume
        found["gemm_gflops"] = [x / 1e9 for x in (before, gemm_flops_per_s("cpu", torch.float32))]
        print(
            f"{name}: {found['bpb']:.4f} bits per byte after {found['minutes']:.2f} minutes,"
            f" {found['tokens']:,} tokens, {found['n_parameters']:,} parameters",
            flush=True,
        )
        result = {"minutes": args.minutes, "protocol": protocol(args), "contenders": results}
        write_result(args.out, result | {"tuning": trials}, "x-transformers")


def protocol(args: argparse.Namespace) -> str:
    n_bytes = scored_text(args.valid_bytes, corpus_of(args)).size - 1
    return (
        f"{n_bytes:,} bytes after the first one of the validation split; windows of the model's"
        " context, moved by half of it, each byte scored once"
    )


def scored_text(n_bytes: int, corpus: Corpus) -> np.ndarray:
    """Bytes that windows of any context up to the largest cut at the same place."""
    text = corpus.valid[:n_bytes]
    return text[: 1 + (len(text) - 1) // LARGEST_CONTEXT * LARGEST_CONTEXT]


def contend(args: argparse.Namespace, name: str) -> tuple[dict, list[dict]]:
    """The best that a baseline reaches in the whole time, and all runs that led there."""
    start, trials = asdict(BASELINES[name][0]()), []
    finalists = [start]
    if args.settings_of:
        earlier = json.loads(Path(args.settings_of).read_text())
        finalists = [earlier["contenders"][name]["settings"]]
    elif args.tune:
        trials = tune(args, name, start)
        best = [trial["settings"] for trial in sorted(trials, key=_bpb)[: args.finalists]]
        finalists += [settings for settings in best if settings != trials[0]["settings"]]
    runs = []
    for settings in finalists:
        runs.append(start_baseline(args, name, settings, args.minutes, args.valid_bytes))
        print(f"  {name} in full: {runs[-1]['bpb']:.4f} {runs[-1]['settings']}", flush=True)
    return min(runs, key=_bpb), trials + runs


def _bpb(run: dict) -> float:
    return run["bpb"] if isfinite(run["bpb"]) else inf


def corpus_of(args: argparse.Namespace) -> Corpus:
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
        "bpb": bits_per_byte(
            trained.logits, trained.context, scored_text(args.valid_bytes, corpus)
        ),
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


def tune(args: argparse.Namespace, name: str, start: dict) -> list[dict]:
    """Change one setting at a time, each from the best so far; returns all trials."""
    trials = [start_baseline(args, name, start, args.tune_minutes, 131_072)]
    for _ in range(args.tune_rounds):
        before = min(map(_bpb, trials))
        for key, values in GRIDS[name].items():
            best = min(trials, key=_bpb)["settings"]
            for value in values:
                changed = best | {key: value}
                if key == "seq_len":  # as many tokens a step as before
                    changed["batch_size"] = max(1, best["batch_size"] * best["seq_len"] // value)
                if changed in [trial["settings"] for trial in trials]:
                    continue
                trials.append(start_baseline(args, name, changed, args.tune_minutes, 131_072))
                print(f"  {name} {key} {value}: {trials[-1]['bpb']:.4f}", flush=True)
        if min(map(_bpb, trials)) == before:
            break
    return trials


def run_ours(args: argparse.Namespace, name: str) -> dict:
    """Run the train command, and score what it leaves."""
    share, flags = OURS[name]
    minutes = share * args.minutes
    with TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).parents[1] / "train_lm.py")]
        command += [f"--data={args.data}", f"--out={folder}", f"--seed={args.seed}", "--device=cpu"]
        command += flags + shlex.split(args.ours)
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

        text = scored_text(args.valid_bytes, corpus_of(args))
        return {
            "bpb": bits_per_byte(logits, config.model.seq_len, text),
            "minutes": took,
            "steps": lines[-1]["step"],
            "tokens": lines[-1]["tokens"],
            "n_parameters": model.n_parameters(),
            "settings": config.to_flat() | {"data": Path(args.data).name},
            "curve": curve,
        }


if __name__ == "__main__":
    main()
