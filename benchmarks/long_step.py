"""Training steps at a length where one tensor of the text takes gigabytes: loss, seconds, memory.

    python benchmarks/long_step.py --data FILE --out benchmarks/results/long_step.json

The model is that of the preset long, whose settings flags change; text follows text, so that each
step sees bytes that no step before it saw. Memory is the highest resident set of the process, torch
itself and the text included; beside it stands what accounting predicts for the step. --compare
takes the first step by other settings too, each in a process of its own, and sets loss and gradient
norm beside one another: --compare "head_chunk=None stored_precision=fp32" is the plain step, blocks
recomputed.
"""

import argparse
import ast
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from math import log
from multiprocessing import get_context
from pathlib import Path

import torch
import yaml
from provenance import write_result

from sparse_tx.accounting import count_parameters
from sparse_tx.config import RunConfig, preset_text
from sparse_tx.data import WindowLoader, prepare_corpus
from sparse_tx.folders import default_cache_dir
from sparse_tx.model import GPT
from sparse_tx.profiler.memory import peak_resident_bytes, reset_peak, resident_bytes
from sparse_tx.profiler.predict import predict_peak
from sparse_tx.profiler.records import Setting
from sparse_tx.profiler.settings import engine_of
from sparse_tx.training.optimiser import make_optimisers


def take_steps(config: RunConfig, n_steps: int, data: str) -> dict:
    """Train a new model for some steps, saying of each what it was."""
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
    corpus = prepare_corpus(
        data,
        tokenizer="byte",
        vocab_size=config.model.vocab_size,
        split=config.data.split,
        cache_dir=default_cache_dir(),
    )
    torch.manual_seed(config.training.seed)
    reset_peak()
    before = resident_bytes()
    model = GPT(config.model)
    optimisers = make_optimisers(model, config.training)
    loader = WindowLoader(
        corpus.train,
        seq_len=config.model.seq_len,
        batch_size=config.training.batch_size,
        seed=config.training.seed,
        start_token=model.start_token,
    )
    steps = []
    for number in range(1, n_steps + 1):
        tokens, targets = loader.next_batch()
        begin = time.perf_counter()
        loss = model.loss(tokens, targets) / targets.numel()
        forward = time.perf_counter() - begin
        print(f"step {number}: loss {loss.item():.4f}, forward {forward:.0f} s", flush=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.clip).item()
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


def in_a_fresh_process(config: RunConfig, n_steps: int, data: str, n_threads: int) -> dict:
    with ProcessPoolExecutor(
        1,
        mp_context=get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(n_threads,),
    ) as fresh:
        return fresh.submit(take_steps, config, n_steps, data).result()


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
    parser.add_argument("--compare", action="append", default=[], help="the same, of one more step")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out")
    args = parser.parse_args()
    config = RunConfig.from_flat(yaml.safe_load(preset_text("long")))
    length = f" seq_len={args.seq_len}" if args.seq_len else ""
    config = changed(config, args.model + length)
    result = {
        "data": Path(args.data).name,
        "threads": args.threads,
        "model": asdict(config.model),
        **in_a_fresh_process(config, args.steps, args.data, args.threads),
        "compared": {},
    }
    for settings in args.compare:
        print(f"with {settings}:", flush=True)
        other = in_a_fresh_process(changed(config, settings), 1, args.data, args.threads)
        result["compared"][settings] = other
    write_result(args.out, result)


if __name__ == "__main__":
    main()
