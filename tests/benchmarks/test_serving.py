"""The benchmark of the server, for a moment: what it leaves behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from tests.serving.conftest import make_model, save_run

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "serving.py"


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_clients_of_a_moment(tmp_path):
    save_run(tmp_path / "run", make_model())
    command = [sys.executable, str(BENCHMARK), "--checkpoint", str(tmp_path / "run")]
    command += ["--clients", "3", "--seconds", "1", "--out", str(tmp_path / "result.json")]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr

    result = json.loads((tmp_path / "result.json").read_text())
    assert result["provenance"]["command"].startswith("python serving.py --checkpoint")
    assert result["exit_status"] == 0 and len(result["resident_bytes"]) == 3
    for period in result["periods"]:
        assert period["errors"] == [] and period["still_growing"] == 0
        assert period["tokens_per_s"] > 0 and 0 < period["fairness"] <= 1
        assert period["texts"] + period["left"] >= 3
