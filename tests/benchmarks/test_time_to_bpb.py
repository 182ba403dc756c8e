"""The benchmark at equal wall clock, in seconds instead of minutes: what it leaves behind."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.helpers import TEXT

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "time_to_bpb.py"


def test_contenders_are_trained_and_scored_alike(tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT * 12)
    contenders = ["sparse_tx", "dense"]
    if find_spec("x_transformers"):
        contenders.append("x-transformers")
    command = [sys.executable, str(BENCHMARK), "--data", str(tmp_path / "text.txt")]
    command += ["--minutes", "0.25", "--contenders", ";".join(contenders)]
    command += ["--ours", "--preset tiny --engine views --sample_length 0"]
    command += ["--valid_bytes", "5000", "--out", str(tmp_path / "result.json")]
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr

    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result["contenders"]) == contenders
    for found in result["contenders"].values():
        assert 0 < found["bpb"] < 8.2
        assert found["tokens"] > 0 and found["steps"] > 0 and found["n_parameters"] > 0
    assert result["contenders"]["sparse_tx"]["settings"]["n_embd"] == 32


@pytest.mark.parametrize("context", [4, 10, 64])
def test_every_byte_is_scored_once(context, monkeypatch):
    """By a model that knows how often each byte comes and nothing else: a sum tells them apart."""
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    from dense_baseline import bits_per_byte

    text = np.random.default_rng(0).integers(256, size=1 + 5 * context, dtype=np.uint8)
    bits = torch.rand(256, dtype=torch.float64).mul(8).softmax(0).log2().neg()

    def logits(windows):
        return (-bits * log(2)).expand(*windows.shape, 256)

    found = bits_per_byte(logits, context, text, batch_tokens=2 * context)
    assert found == pytest.approx(bits[text[1:].astype(int)].mean().item(), rel=1e-9)
