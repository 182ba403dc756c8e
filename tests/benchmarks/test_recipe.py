"""Trials of the recipe, at a tiny size: what they leave behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.helpers import TEXT

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "recipe.py"
SMALL = "seq_len=31 n_layer=1 n_embd=16 engine=views ngram_rows=50 sample_length=0"


def test_trials_of_several_seeds(tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT)
    command = [sys.executable, str(BENCHMARK), "--data", str(tmp_path / "text.txt")]
    command += ["--steps", "3", "--seeds", "1,2", "--eval_bytes", "300"]
    command += ["--set", SMALL, "--set", f"{SMALL} pattern=dense"]
    command += ["--out", str(tmp_path / "result.json")]
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr

    first, second = json.loads((tmp_path / "result.json").read_text())["trials"].values()
    assert [run["seed"] for run in second["runs"]] == [1, 2]
    assert all(len(run["train_bpb"]) == 3 for run in second["runs"])
    apart = [
        a["valid_bpb"] - b["valid_bpb"] for a, b in zip(second["runs"], first["runs"], strict=True)
    ]
    assert second["minus_first"] == pytest.approx(sum(apart) / 2)
    assert second["minus_first_std"] == pytest.approx(abs(apart[0] - apart[1]) / 2**0.5)
