"""Tokens a second at a short context: the sample command against Hugging Face's ``generate``.

    python benchmarks/sampling.py --checkpoint RUN --out benchmarks/results/sampling.json

RUN is a run of the preset ``cpu``. Against it stands a GPT-2 configuration of its width, heads,
depth and context, whose weights are random, with its key-value cache; both sample from their whole
distribution, in turn. Of ours, the figure is the command's own, which it writes to standard error;
Hugging Face's is taken around ``generate``, without its start.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
from provenance import write_result
from transformers import GPT2Config, GPT2LMHeadModel

from sparse_tx.checkpoint import load_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--length", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out")
    args = parser.parse_args()
    config = load_checkpoint(args.checkpoint)[2].model
    other = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.seq_len,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            bos_token_id=0,
            eos_token_id=None,
        )
    ).eval()
    rates = {"sparse_tx sample": [], "transformers generate": []}
    for seed in range(args.rounds):
        rates["sparse_tx sample"].append(rate_of_command(args.checkpoint, args.length, seed))
        rates["transformers generate"].append(rate_of_generate(other, args.length))
    for name, found in rates.items():
        print(f"{name:22} {median(found):9.1f} tokens/s ({min(found):.1f} to {max(found):.1f})")
    ratio = median(rates["sparse_tx sample"]) / median(rates["transformers generate"])
    print(f"ratio {ratio:.2f}")
    result = {"length": args.length, "tokens_per_s": rates, "ratio": ratio}
    write_result(args.out, result, "transformers")


def rate_of_command(checkpoint: str, length: int, seed: int) -> float:
    script = Path(__file__).parents[1] / "sample.py"
    command = [sys.executable, str(script), f"--checkpoint={checkpoint}", f"--length={length}"]
    done = subprocess.run(
        [*command, f"--seed={seed}", "--device=cpu"], capture_output=True, text=True, check=True
    )
    [rate] = re.findall(r"([\d,.]+) tokens/s", done.stderr)
    return float(rate.replace(",", ""))


@torch.inference_mode()
def rate_of_generate(model: GPT2LMHeadModel, length: int) -> float:
    prompt = torch.zeros(1, 1, dtype=torch.long)
    begin = time.perf_counter()
    made = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        top_k=0,
        max_new_tokens=length,
        pad_token_id=0,
    )
    assert made.shape[1] == 1 + length
    return length / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
