"""Training steps at a length where one tensor of the text takes gigabytes: loss, seconds, memory.

    python benchmarks/long_step.py --data FILE --out benchmarks/results/long_step.json

The model is that of the preset long, whose settings flags change, at its peak learning rate from
the first step on; text follows text, so that each step sees bytes that no step before it saw.
Memory is the highest resident set of the process, torch itself and the text included; beside it
stands what accounting predicts for the step. The resident set also has what malloc keeps of memory
that was freed, so that the two are farther apart than they are with --give_back, which has malloc
keep none, at the cost of time.

--compare has the first batch's gradient taken by the model and by the same one under other
settings, each in a process of its own: --compare "head_chunk=None stored_precision=fp32" is the
plain step, blocks recomputed. Head and branch outputs, which begin at zero in training, are drawn
there, so that every weight has a gradient.
"""

import argparse
import ast
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from math import log
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml
from provenance import write_result

from sparse_tx.accounting import count_parameters
from sparse_tx.config import RunConfig, preset_text
from sparse_tx.data import prepare_corpus
from sparse_tx.data.loader import WindowLoader
from sparse_tx.folders import default_cache_dir
from sparse_tx.model import GPT
from sparse_tx.profiler.memory import (
    give_back_freed_memory,
    peak_resident_bytes,
    reset_peak,
    resident_bytes,
)
from sparse_tx.profiler.predict import predict_peak
from sparse_tx.profiler.records import Setting
from sparse_tx.profiler.settings import engine_of
from sparse_tx.training.optimiser import clip_gradients, make_optimisers


def loader_of(config: RunConfig, data: str, start_token: int) -> WindowLoader:
    """Windows of the text, each once, in the seed's order."""
    corpus = prepare_corpus(
        data,
        tokenizer="byte",
        vocab_size=config.model.vocab_size,
        split=config.data.split,
        cache_dir=default_cache_dir(),
    )
    return WindowLoader(
        corpus.train,
        seq_len=config.model.seq_len,
        batch_size=config.training.batch_size,
        seed=config.training.seed,
        start_token=start_token,
    )


def take_steps(config: RunConfig, n_steps: int, data: str, give_back: bool) -> dict:
    """Train a new model for some steps, saying of each what it was."""
    if give_back:
        give_back_freed_memory()
    setting = Setting(
        work="train", label=config.model.pattern, model=config.model, training=config.training
    )
    predicted = predict_peak(setting, engine_of(setting))
    parameters = count_parameters(config.model).parts
    in_blocks = sum(parameters[part] for part in ("qkv", "output", "feed_forward"))
    print(
        f"{sum(parameters.values()):,} parameters, {in_blocks:,} in the blocks' matrices,"
        f" {config.model.seq_len:,} tokens; predicted {predicted.total / 1e9:.2f} GB",
        flush=True,
    )
    torch.manual_seed(config.training.seed)
    reset_peak()
    before = resident_bytes()
    model = GPT(config.model)
    optimisers = make_optimisers(model, config.training)
    loader = loader_of(config, data, model.start_token)
    steps = []
    for number in range(1, n_steps + 1):
        tokens, targets = loader.next_batch()
        begin = time.perf_counter()
        loss = model.loss(tokens, targets) / targets.numel()
        forward = time.perf_counter() - begin
        print(f"step {number}: loss {loss.item():.4f}, forward {forward:.0f} s", flush=True)
        loss.backward()
        norm = clip_gradients(model, config.training.clip)
        for optimiser in optimisers:
            optimiser.step()
        model.zero_grad(set_to_none=True)
        steps.append(
            {
                "nats_per_token": loss.item(),
                "bits_per_byte": loss.item() / log(2),
                "gradient_norm": norm,
                "forward_s": forward,
                "seconds": time.perf_counter() - begin,
                "peak_resident_bytes": peak_resident_bytes(),
            }
        )
        print(
            f"step {number}: gradient norm {norm:.6g}, {steps[-1]['seconds']:.0f} s in all,"
            f" {steps[-1]['peak_resident_bytes'] / 1e9:.2f} GB at most",
            flush=True,
        )
    return {
        "parameters": sum(parameters.values()),
        "parameters_in_blocks": in_blocks,
        "predicted_bytes": predicted.total,
        "predicted_parts": predicted.parts,
        "resident_before_bytes": before,
        "measured_beyond_bytes": peak_resident_bytes() - before,
        "steps": steps,
    }


def take_gradient(config: RunConfig, data: str, target: str) -> dict:
    """The first batch's loss and gradient at drawn weights; the gradient goes into a file."""
    torch.manual_seed(config.training.seed)
    reset_peak()
    before = resident_bytes()
    model = GPT(replace(config.model, init="paper-code"))
    torch.nn.init.normal_(model.head_weight, std=config.model.n_embd**-0.5)
    tokens, targets = loader_of(config, data, model.start_token).next_batch()
    loss = model.loss(tokens, targets) / targets.numel()
    loss.backward()
    torch.save({name: p.grad for name, p in model.named_parameters()}, target)
    beyond = peak_resident_bytes() - before
    return {"nats_per_token": loss.item(), "measured_beyond_bytes": beyond}


def compare(config: RunConfig, other: RunConfig, data: str, n_threads: int) -> dict:
    """Both losses, and how far the gradients are from one another, relative in norm."""
    with TemporaryDirectory() as folder:
        files = [f"{folder}/{name}" for name in ("this", "other")]
        found = [
            in_a_fresh_process(n_threads, take_gradient, each, data, file)
            for each, file in zip((config, other), files, strict=True)
        ]
        this, that = map(torch.load, files)
    off = {name: ((this[name] - that[name]).norm() / that[name].norm()).item() for name in that}
    worst = max(off, key=off.get)
    whole = sum((this[name] - that[name]).norm() ** 2 for name in that) ** 0.5
    whole = (whole / sum(gradient.norm() ** 2 for gradient in that.values()) ** 0.5).item()
    print(f"gradients differ by {whole:.2g} in all, {off[worst]:.2g} at most ({worst})", flush=True)
    return {
        "this": found[0],
        "other": found[1],
        "gradient_difference": whole,
        "largest_difference": off[worst],
        "largest_of": worst,
    }


def in_a_fresh_process(n_threads: int, function, *arguments) -> dict:
    with ProcessPoolExecutor(
        1,
        mp_context=get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(n_threads,),
    ) as fresh:
        return fresh.submit(function, *arguments).result()


def changed(config: RunConfig, settings: str) -> RunConfig:
    """The configuration with settings of the model such as ``n_layer=4 head_chunk=None``."""
    values = {}
    for setting in settings.split():
        name, _, value = setting.partition("=")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name] = value
    return replace(config, model=replace(config.model, **values))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="stdlib")
    parser.add_argument("--seq_len", type=int)
    parser.add_argument("--model", default="", help="settings such as 'n_layer=4 head_chunk=1'")
    parser.add_argument(
        "--compare", action="append", default=[], help="the same, of another gradient"
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--give_back", action="store_true", help="have malloc give back at once what is freed"
    )
    parser.add_argument("--out")
    args = parser.parse_args()
    config = RunConfig.from_flat(yaml.safe_load(preset_text("long")))
    length = f" seq_len={args.seq_len}" if args.seq_len else ""
    config = changed(config, args.model + length)
    result = {
        "data": Path(args.data).name,
        "threads": args.threads,
        "give_back": args.give_back,
        "model": asdict(config.model),
        **in_a_fresh_process(
            args.threads, take_steps, config, args.steps, args.data, args.give_back
        ),
        "compared": {},
    }
    for settings in args.compare:
        print(f"beside {settings}:", flush=True)
        other = changed(config, settings)
        result["compared"][settings] = compare(config, other, args.data, args.threads)
    write_result(args.out, result)


if __name__ == "__main__":
    main()
