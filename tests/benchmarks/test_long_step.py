"""The benchmark of long training steps, at a tiny size: what it leaves behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.helpers import TEXT

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "long_step.py"
SMALL = "n_layer=2 n_embd=32 n_head=2 head_chunk=1 chunk=100 pattern=local:8,strided:8 engine=views"


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_steps_beside_the_plain_step(tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT)
    command = [sys.executable, str(BENCHMARK), "--seq_len", "301", "--steps", "2"]
    command += ["--data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "result.json")]
    command += ["--model", SMALL, "--compare", "head_chunk=None stored_precision=fp32"]
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    assert "step 2: gradient norm" in done.stdout

    result = json.loads((tmp_path / "result.json").read_text())
    assert result["provenance"]["command"].startswith("python long_step.py --seq_len 301")
    assert result["model"]["stored_precision"] == "bf16"
    assert result["parameters_in_blocks"] == 2 * 12 * 32**2
    assert result["measured_beyond_bytes"] > 0
    first, second = result["steps"]
    assert second["nats_per_token"] < first["nats_per_token"]
    (found,) = result["compared"].values()
    assert found["this"]["nats_per_token"] == pytest.approx(found["other"]["nats_per_token"])
    assert 0 < found["gradient_difference"] < 2 * 2 * 2**-9  # two blocks, stored in bf16
