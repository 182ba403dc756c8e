"""The attention benchmark, at a tiny size: what it leaves behind, and what it refuses."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROW = {
    *("pattern", "engine", "forward_s", "backward_s", "median_s", "pair_ratio", "peak_bytes"),
    *("speedup_over_dense", "speedups_by_round", "useful_gflops", "useful_over_gemm"),
    *("roofline_s", "achieved_over_roofline", "relative_error"),
}


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCHMARKS / "attention.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_one_command_writes_json_and_plot(tmp_path):
    sizes = ["--seq_len", "96", "--lengths", "48", "--growth", "64", "--n_head", "2"]
    sizes += ["--head_dim", "8", "--rounds", "2"]
    patterns = ["--patterns", "local:128;strided:128"]
    engines = ["--engines", "views,sdpa-mask,local-attention"]
    done = run(*sizes, *patterns, *engines, "--out", str(tmp_path / "result.json"))
    assert done.returncode == 0, done.stderr

    result = json.loads((tmp_path / "result.json").read_text())
    expected = {
        f"{pattern} by {engine}"
        for pattern in ("local:128", "strided:128")
        for engine in ("views", "sdpa-mask")
    }
    expected |= {"dense by sdpa"}
    if find_spec("local_attention"):
        expected |= {"local:128 by local-attention"}
    for found in (result, result["lengths"]["48"]):
        assert set(found["contenders"]) == expected
        assert all(set(row) == ROW for row in found["contenders"].values())
        assert len(found["gemm_gflops"]) == len(found["copy_gb_per_s"]) == 2
    assert "strided:128 by local-attention" in result["left_out"]
    assert "views" in result["alternating_local_strided"]
    assert set(result["peak_bytes_one_head"]["local:128 by views"]) == {"64"}
    assert result["provenance"]["command"].startswith("python attention.py")
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engines", "cpu,flax"], "unknown engine 'flax': did you mean 'flex'?"),
        (["--patterns", "locl:8"], "unknown word 'locl' in pattern 'locl:8': did you mean 'local'"),
        (["--patterns", "local:8,dense"], "separate patterns by ';'"),
        (["--lengths", "1k"], "invalid lengths value: '1k'"),
        (["--dtype", "bfloat16"], "--dtype bfloat16 needs --device cuda"),
        (["--seconds", "nan"], "--seconds is nan; give a number above 0"),
        (["--out", "result.png"], "give a name that ends in .json"),
        (["--out", "/dev/null/result.json"], "cannot be written ("),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def attention(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import attention

    return attention


@pytest.mark.parametrize("window", [1, 2, 7, 16, 129])
def test_local_attention_is_exact(attention, window):
    pytest.importorskip("local_attention")
    contender = attention.Contender(f"local:{window}", "local-attention")
    assert attention.relative_error(contender, attention.Problem(3, 131, 5)) < 1e-5


def test_the_gate_sees_a_window_that_is_off_by_one(attention, monkeypatch):
    contender = attention.Contender("local:128", "views")
    wider = attention.Contender("local:129", "views")
    monkeypatch.setattr(attention.Contender, "prepare", lambda _, problem: prepared)
    for dtype in (torch.float32, torch.bfloat16):
        problem = attention.Problem(2, 700, 16, dtype=dtype)
        heads = wider.layer
        prepared = lambda q, k, v: attention.sparse_attention(q, k, v, heads)  # noqa: E731, B023
        with pytest.raises(SystemExit, match="wrong before it is fast"):
            attention.pass_gate([contender], problem)
