"""Tokens a second of generation at long contexts: a sparse cache against a dense one.

    python benchmarks/decode.py --out benchmarks/results/decode.json

One model of random weights for each context: width 512, 8 heads, local and strided layers in turn,
both as wide as the root of the context. Against it stand the same weights with a dense cache, by
torch's scaled_dot_product_attention, and by our own native step. Caches are filled with random
numbers instead of by a prompt; the tokens that are timed are the last of the context. Contenders
take turns, each anew from an empty memory, because two such caches do not fit beside each other.

Before anything is timed, the logits of each decoder at a short context have to be those of the
whole text at once.
"""

import argparse
import time
from dataclasses import dataclass, replace
from math import isqrt
from statistics import median

import torch
from provenance import write_result

from sparse_tx.accounting import cache_bytes
from sparse_tx.config import ModelConfig
from sparse_tx.generation import CachedDecoder, NativeDecoder
from sparse_tx.generation.cached import IncrementalDecoder
from sparse_tx.model import GPT
from sparse_tx.profiler.machine import gemm_flops_per_s

# Numbers that are copied over and over to fill a cache.
_TILE = 1 << 20


@dataclass(frozen=True)
class Contender:
    name: str
    decoder: type[IncrementalDecoder]
    dense: bool


CONTENDERS = (
    Contender("sparse, native", NativeDecoder, dense=False),
    Contender("dense, SDPA", CachedDecoder, dense=True),
    Contender("dense, native", NativeDecoder, dense=True),
    Contender("sparse, torch", CachedDecoder, dense=False),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", default="65536:12,262144:12,1048576:4", help="tokens:layers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16, help="timed in a round")
    parser.add_argument("--only", default="", help="names of contenders, with ; between them")
    parser.add_argument("--out")
    args = parser.parse_args()
    contenders = [c for c in CONTENDERS if not args.only or c.name in args.only.split(";")]
    result = {"gemm_gflops": gemm_flops_per_s("cpu", torch.float32) / 1e9, "contexts": []}
    for each in args.contexts.split(","):
        T, n_layer = map(int, each.split(":"))
        result["contexts"].append(compare(contenders, T, n_layer, args.rounds, args.tokens))
        write_result(args.out, result)


def config_of(T: int, n_layer: int, dense: bool) -> ModelConfig:
    stride = isqrt(T)
    return ModelConfig(
        seq_len=T,
        n_layer=n_layer,
        n_head=8,
        n_embd=512,
        pattern="dense" if dense else f"local:{stride},strided:{stride}",
        position="rope",
        qk_norm=True,
        activation="relu2",
        bias=False,
        init="paper-code",
    )


def compare(contenders, T: int, n_layer: int, rounds: int, tokens: int) -> dict:
    """Seconds a token of each contender at context T, and its bytes beside the accounting's."""
    for contender in contenders:
        check(contender)
    seconds = {contender.name: [] for contender in contenders}
    counted = {}
    for _ in range(rounds):
        for contender in contenders:
            decoder = filled(contender, T, n_layer)
            seconds[contender.name].append(seconds_a_token(decoder, tokens))
            counts = cache_bytes(decoder.model.config, T)
            counted[contender.name] = {
                "bytes_stored": decoder.cache.bytes_stored(T),
                "bytes_stored_by_accounting": counts.stored.total,
                "bytes_read": decoder.cache.bytes_read(T),
                "bytes_read_by_accounting": counts.read.total,
                "bytes_of_slots": decoder.cache.nbytes,
                "parameters": decoder.model.n_parameters(),
            }
            del decoder
    rows = {}
    for name, found in seconds.items():
        rows[name] = {"seconds_a_token": found, "tokens_per_s": 1 / median(found)} | counted[name]
        print(
            f"{T:>9,} tokens, {n_layer} layers, {name:15} {1 / median(found):9.2f} tokens/s"
            f" ({1 / max(found):.2f} to {1 / min(found):.2f}),"
            f" reads {counted[name]['bytes_read'] / 1e6:,.1f} MB",
            flush=True,
        )
    return {"T": T, "n_layer": n_layer, "contenders": rows}


def filled(contender: Contender, T: int, n_layer: int) -> IncrementalDecoder:
    """A decoder whose one text lacks some tokens of the context; its keys are random."""
    torch.manual_seed(0)
    decoder = contender.decoder(GPT(config_of(T, n_layer, contender.dense)).eval())
    decoder.open(1)
    tile = torch.randn(_TILE)
    for layer in decoder.cache.layers:
        for group in layer.groups:
            for whole in (group.k, group.v):
                flat = whole.view(-1)
                for start in range(0, len(flat), _TILE):
                    piece = flat[start : start + _TILE]
                    piece.copy_(tile[: len(piece)])
    return decoder


@torch.inference_mode()
def seconds_a_token(decoder: IncrementalDecoder, tokens: int) -> float:
    """The median over the last tokens of the context, after some that warm up."""
    T, warm_up = decoder.model.config.seq_len, 4
    decoder.assume(0, [0] * (T - 1 - tokens - warm_up))
    found = []
    for token in range(tokens + warm_up):
        begin = time.perf_counter()
        decoder.decode_one_token(torch.tensor([token % 256]))
        found.append(time.perf_counter() - begin)
    return median(found[warm_up:])


@torch.inference_mode()
def check(contender: Contender) -> None:
    """Logits by steps are those of the whole text, at a context that a whole text is cheap at."""
    T = 300
    config = replace(config_of(T, 2, contender.dense), seq_len=T)
    torch.manual_seed(1)
    model = GPT(config).eval()
    torch.nn.init.normal_(model.head_weight, std=0.05)
    text = torch.randint(0, 256, (T - 1,))
    expected = model(torch.cat([torch.tensor([model.start_token]), text])[None])[0, 200:]
    decoder = contender.decoder(model)
    found = [decoder.prefill([text[:200]])]
    found += [decoder.decode_one_token(token[None]) for token in text[200:]]
    error = (torch.cat(found) - expected).abs().max() / expected.abs().max()
    if not error < 1e-4:
        raise AssertionError(f"{contender.name}: logits are off by {error:.1e}")


if __name__ == "__main__":
    main()
