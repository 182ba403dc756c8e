"""Bits per byte as a file: compress some of the test split by a model, and by what everybody has.

    python benchmarks/compression.py --checkpoint RUN --out benchmarks/results/compression.json

The first bytes of the test split of the run's data are compressed and decompressed, and have to
come back. Beside the size stand those of bzip2, xz and zstd at their strongest, and the bits per
byte that ``evaluate`` finds of the same bytes. There every byte has at least half a context before
it, because compression drops the older half of a text that outgrows the context: the two see the
same.
"""

import argparse
import bz2
import json
import lzma
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import zstandard
from provenance import write_result

from sparse_tx.checkpoint import find_checkpoint, load_checkpoint
from sparse_tx.commands.evaluate import main as evaluate
from sparse_tx.data import prepare_corpus
from sparse_tx.folders import default_cache_dir
from sparse_tx.generation.compression import Compressed, compress, decompress

# Of the bits per byte that are evaluated; beyond, the coder or the protocol is at fault.
_GATE = 0.005


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--bytes", type=int, default=1_000_000)
    parser.add_argument("--out")
    args = parser.parse_args()
    model, tokenizer, config = load_checkpoint(args.checkpoint)
    corpus = prepare_corpus(
        config.data.data,
        split=config.data.split,
        cache_dir=default_cache_dir(),
        existing_tokenizer=tokenizer,
    )
    data = tokenizer.decode(corpus.test[: args.bytes])[: args.bytes]
    bpb = evaluated(args.checkpoint, len(data), config.model.seq_len // 2)

    begin = time.monotonic()
    packed = compress(model, tokenizer, data)
    compressed_s = time.monotonic() - begin
    begin = time.monotonic()
    unpacked = decompress(model, tokenizer, Compressed.from_bytes(packed))
    decompressed_s = time.monotonic() - begin
    if unpacked != data:
        raise AssertionError("what came back is not what was compressed")
    own = 8 * len(packed) / len(data)
    if abs(own / bpb - 1) > _GATE:
        raise AssertionError(f"{own:.4f} bits per byte in the file, {bpb:.4f} evaluated")

    sizes = {
        "sparse_tx": len(packed),
        "xz -9e": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        "bzip2 -9": len(bz2.compress(data, 9)),
        "zstd -22": len(zstandard.ZstdCompressor(level=22).compress(data)),
    }
    for name, size in sizes.items():
        print(f"{name:10} {size:9,} bytes  {8 * size / len(data):.4f} bits per byte")
    print(f"evaluated  {bpb:.4f} bits per byte")
    print(f"compressed in {compressed_s:.0f} s, decompressed in {decompressed_s:.0f} s, exactly")
    result = {
        "checkpoint_step": find_checkpoint(args.checkpoint).name,
        "parameters": model.n_parameters(),
        "bytes": len(data),
        "sizes": sizes,
        "bpb_of_the_file": own,
        "bpb_evaluated": bpb,
        "compress_s": compressed_s,
        "decompress_s": decompressed_s,
    }
    write_result(args.out, result, "constriction", "zstandard")


def evaluated(checkpoint: str, n_bytes: int, min_context: int) -> float:
    """Bits per byte of the first bytes of the test split, by the command."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        flags = ["--split", "test", "--max_bytes", n_bytes, "--min_context", min_context]
        flags = [str(flag) for flag in ("--checkpoint", checkpoint, *flags, "--json", path)]
        if evaluate(flags):
            raise SystemExit(2)
        return json.loads(path.read_text())["bpb"]


if __name__ == "__main__":
    main()
