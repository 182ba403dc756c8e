"""Where the time of a training step goes, and what the same model costs with other patterns.

    python benchmarks/training_step.py --patterns dense --out benchmarks/results/training_step.json

Steps of the preset and of the same model with other patterns take turns; times are medians. Shares
come from torch's profiler, by the operators' own time: attention is everything within it, its
products included; matrix products are all others, the optimiser's included; the optimisers are what
else is within them. Useful FLOPs are those of the model's formula on attended pairs (accounting),
without the optimiser's; they are set against the machine's matrix product, timed in turn with the
steps.
"""

import argparse
import time
from collections import Counter
from dataclasses import replace
from statistics import median

import torch
import yaml
from provenance import write_result
from torch.profiler import ProfilerActivity, profile

from sparse_tx.accounting import useful_flops
from sparse_tx.config import RunConfig, preset_text
from sparse_tx.data import Corpus, prepare_corpus
from sparse_tx.data.loader import WindowLoader
from sparse_tx.folders import default_cache_dir
from sparse_tx.model import GPT
from sparse_tx.profiler.machine import gemm_flops_per_s
from sparse_tx.training.optimiser import clip_gradients, make_optimisers

PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm")
LOOKUPS = ("_SumOfRows", "_SumOfRowsBackward")
NORMS = ("aten::native_layer_norm", "aten::native_layer_norm_backward")
ATTENTION = (
    "_SparseAttention",
    "_SparseAttentionBackward",
    "sparse_tx::cpu_attention",
    "sparse_tx::cpu_attention_backward",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
)


class Step:
    """A model and its optimisers, taking training steps on windows of a text.

    Of random bytes, look-ups would find nothing twice.
    """

    def __init__(self, config: RunConfig, corpus: Corpus):
        torch.manual_seed(0)
        self.model = GPT(config.model)
        self.optimisers = make_optimisers(self.model, config.training)
        self.loader = WindowLoader(
            corpus.train,
            seq_len=config.model.seq_len,
            batch_size=config.training.batch_size,
            seed=0,
            start_token=self.model.start_token,
        )
        self.n_tokens = config.training.batch_size * config.model.seq_len

    def take(self) -> float:
        """Take one step; returns its seconds."""
        begin = time.perf_counter()
        self.model.loss(*self.loader.next_batch()).div(self.n_tokens).backward()
        clip_gradients(self.model, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.model.zero_grad(set_to_none=True)
        return time.perf_counter() - begin


def kind_of(event) -> str:
    """What an operator is for, by itself and by what called it."""
    names, caller = [], event
    while caller is not None:
        names.append(caller.name)
        caller = caller.cpu_parent
    if any(name in ATTENTION for name in names):
        return "attention"
    if event.name in PRODUCTS:
        return "matrix products"
    if any(name in LOOKUPS for name in names):
        return "look-ups"
    if any(name.startswith("Optimizer.step#") for name in names):
        return "optimisers, besides products"
    return "norms" if event.name in NORMS else "elementwise and copies"


def shares(step: Step, n_steps: int = 3) -> dict[str, float]:
    """The share of each kind of work in the time of a step."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(n_steps):
            step.take()
    found = Counter()
    for event in profiled.events():
        found[kind_of(event)] += event.self_cpu_time_total
    return {kind: time / found.total() for kind, time in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--data", default="stdlib")
    parser.add_argument("--patterns", default="dense", help="further patterns, separated by ;")
    parser.add_argument("--engines", default="auto", help="attention engines, separated by ,")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out")
    args = parser.parse_args()
    config = RunConfig.from_flat(yaml.safe_load(preset_text(args.preset)))
    corpus = prepare_corpus(args.data, cache_dir=default_cache_dir())
    steps = {}
    for engine in args.engines.split(","):
        for pattern in filter(None, [config.model.pattern, *args.patterns.split(";")]):
            model = replace(config.model, pattern=pattern, engine=engine)
            steps[f"{pattern} by {engine}"] = Step(replace(config, model=model), corpus)
    seconds = {name: [] for name in steps}
    for step in steps.values():
        step.take()
    gemm = []
    for _ in range(args.rounds):
        gemm.append(gemm_flops_per_s("cpu", torch.float32))
        for name, step in steps.items():
            seconds[name].append(step.take())
    results = {}
    for name, step in steps.items():
        middle = median(seconds[name])
        flops = useful_flops(step.model.config, batch=config.training.batch_size)
        useful = flops.without_recompute / middle
        results[name] = {
            "engine": step.model.engine(),
            "seconds": seconds[name],
            "tokens_per_s": step.n_tokens / middle,
            "n_parameters": step.model.n_parameters(),
            "useful_gflops": useful / 1e9,
            "useful_over_gemm": useful / median(gemm),
            "shares": shares(step),
        }
        print(
            f"{name}: {middle:.3f} s a step ({min(seconds[name]):.3f} to"
            f" {max(seconds[name]):.3f}), {step.n_tokens / middle:,.0f} tokens/s,"
            f" {useful / 1e9:.1f} GFLOP/s, {useful / median(gemm):.2f} of the matrix product"
        )
        for kind, share in sorted(results[name]["shares"].items(), key=lambda x: -x[1]):
            print(f"  {share:6.1%}  {kind}")
    write_result(
        args.out,
        {"preset": args.preset, "gemm_gflops": [x / 1e9 for x in gemm], "contenders": results},
    )


if __name__ == "__main__":
    main()
