"""What a native step of several tokens of one text costs, in times of a step of one token.

    python benchmarks/several_tokens.py --out benchmarks/results/several_tokens.json

Speculative decoding, which has the model look at several guessed tokens in one step, gains as far
as such a step is cheaper than its tokens one by one. Two models of random weights: the shape of the
preset ``cpu``, and that of ``decode`` at a context of 65,536 tokens. The texts are some hundred
tokens short of the context; sizes of a step take turns.
"""

import argparse
import time
from statistics import median

import torch
import yaml
from decode import config_of
from provenance import write_result

from sparse_tx.config import RunConfig, preset_text
from sparse_tx.generation import NativeDecoder
from sparse_tx.model import GPT

TOKENS = (1, 2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out")
    args = parser.parse_args()
    preset = RunConfig.from_flat(yaml.safe_load(preset_text("cpu")))
    configs = {"preset cpu": preset.model, "65,536 tokens": config_of(65_536, 12, False)}
    result = {name: seconds_of_steps(GPT(c).eval(), args.rounds) for name, c in configs.items()}
    for name, seconds in result.items():
        one = median(seconds[1])
        ratios = ", ".join(f"{n}: {median(found) / one:.2f}" for n, found in seconds.items())
        print(f"{name:14} {1000 * one:.2f} ms a token; in times of that, {ratios}")
    write_result(args.out, {"seconds_of_steps": result})


@torch.inference_mode()
def seconds_of_steps(model: GPT, rounds: int) -> dict[int, list[float]]:
    """Seconds of steps by how many tokens they take, at the end of the context."""
    decoder = NativeDecoder(model)
    decoder.open(1)
    decoder.assume(0, [0] * (model.config.seq_len - 1 - (rounds + 1) * sum(TOKENS)))
    seconds = {n: [] for n in TOKENS}
    for number in range(rounds + 1):  # the first warms up
        for n in TOKENS:
            begin = time.perf_counter()
            for _ in decoder.decode_tokens([65] * n):
                pass
            if number:
                seconds[n].append(time.perf_counter() - begin)
    return seconds


if __name__ == "__main__":
    main()
