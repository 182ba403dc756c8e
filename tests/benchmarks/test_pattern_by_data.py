"""Patterns by data: what is compared, how, and a run of seconds."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

import numpy as np
import pytest

from sparse_tx.attention.api import ENGINES
from sparse_tx.patterns import parse_pattern

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "pattern_by_data.py"


@pytest.fixture
def benchmark_module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import pattern_by_data

    return pattern_by_data


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_quick_run_compares_all_patterns_and_its_losses_fall(tmp_path):
    out = tmp_path / "result.json"
    done = run("--quick", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "16 of 16 runs" in done.stderr
    assert "fixed is better than strided on text, positions grid: " in done.stdout
    result = json.loads(out.read_text())
    assert result["provenance"]["command"].startswith("python pattern_by_data.py --quick")
    assert str(tmp_path) not in json.dumps({**result, "provenance": None})
    patterns = {"dense", "strided", "fixed", "local"}
    assert set(result["bits_per_byte"]) == {"grid"}
    for by_data in result["bits_per_byte"].values():
        assert set(by_data) == {"text", "images"}
        for by_pattern in by_data.values():
            assert set(by_pattern) == patterns
            assert all(len(bits) == 2 for bits in by_pattern.values())
    names = ("position", "data", "pattern", "seed")
    runs = {tuple(one[name] for name in names): one for one in result["runs"]}
    assert len(runs) == 16
    for (position, data, pattern, seed), one in runs.items():
        assert one["valid_bpb"] == result["bits_per_byte"][position][data][pattern][seed - 1]
        assert one["train_bpb"][-1] < one["train_bpb"][0]
        assert one["engine"] in ENGINES and one["skipped_steps"] == 0 and one["epochs"] > 0
        assert "in windows of 784 tokens" in one["protocol"]
    # The same model under each pattern.
    assert len({one["n_parameters"] for one in result["runs"]}) == 1


def test_sparse_patterns_read_nearly_as_many_pairs(benchmark_module):
    T, n_head = 784, 4
    q, k = np.arange(T)[:, None], np.arange(T)
    found = {}
    for name, pattern in benchmark_module.PATTERNS.items():
        stack = parse_pattern(pattern)
        heads = [stack.at(layer=0, head=head, n_head=n_head) for head in range(n_head)]
        pairs = sum(int((head.allows(q, k) & (k <= q)).sum()) for head in heads)
        found[name] = pairs
        assert benchmark_module.pairs_of(pattern, n_head) == pairs
    sparse = [found[name] for name in ("strided", "fixed", "local")]
    assert max(sparse) / min(sparse) < 1.05
    assert found["dense"] / max(sparse) > 9


def test_the_column_above_and_the_rows_before(benchmark_module):
    """Position p predicts byte p, and the token there is byte p - 1."""
    patterns = benchmark_module.PATTERNS
    p = 10 * 28 + 13
    strided = parse_pattern(patterns["strided"]).at(layer=0, head=0, n_head=4)
    read = {k - 1 for k in range(p + 1) if strided.allows(p, k)}
    assert {p - 1, p - 28} <= read and p - 56 - 1 in read
    fixed = parse_pattern(patterns["fixed"])
    columns = set()
    for head in range(4):
        at = fixed.at(layer=0, head=head, n_head=4)
        columns |= {k % 28 for k in range(9 * 28) if at.allows(p, k)}
    assert len(columns) == 8


def test_intervals_are_student_s(benchmark_module):
    found = benchmark_module.paired([1.0, 2.0, 4.0], [0.5, 1.0, 3.5])
    assert found["by_seed"] == [0.5, 1.0, 0.5]
    assert found["difference"] == pytest.approx(2 / 3)
    # Of a table: 4.303 standard errors for three values at 95 %.
    half = 4.302653 * np.std(found["by_seed"], ddof=1) / 3**0.5
    assert found["high"] - mean(found["by_seed"]) == pytest.approx(half, rel=1e-4)
    assert found["low"] == pytest.approx(2 / 3 - half, rel=1e-4)


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((-2, -1), "holds"),
        ((1, 2), "reversed"),
        ((-1, 2), "not resolved"),
        ((0, 1), "not resolved"),
    ],
)
def test_verdicts(benchmark_module, interval, word):
    assert benchmark_module.verdict(*interval) == word


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["holds", "holds"], "holds"),
        (["holds", "not resolved"], "not resolved"),
        (["reversed", "not resolved"], "reversed"),
    ],
)
def test_both_claims(benchmark_module, words, word):
    assert benchmark_module.both([{"verdict": one} for one in words]) == word


def test_the_report_pairs_seeds_and_claims_what_the_paper_does(benchmark_module):
    module = benchmark_module
    bits = {"dense": 3.0, "strided": 2.0, "fixed": 1.0, "local": 4.0}
    wanted, runs = [], []
    for seed in (1, 2, 3):
        for position, scale in (("grid", 1), ("grid+rope", 5)):
            for data, sign in (("text", 1), ("images", -1)):
                for pattern, value in bits.items():
                    own = {"data": data, "pattern": pattern, "position": position, "seed": seed}
                    wanted.append(own | {"source": "secret"})
                    # Seeds differ far more than patterns do, and alike for all of them.
                    bpb = scale * sign * value + 100 * seed + 0.01 * seed * value
                    runs.append({"valid_bpb": bpb})
    result = module.report(module.QUICK, [1, 2, 3], wanted, runs, workers=2)
    claims = {(claim["position"], claim["data"]): claim for claim in result["claims"]}
    assert [claim["verdict"] for claim in claims.values()] == ["holds"] * 4
    assert claims["grid", "text"]["difference"] == pytest.approx(-1.02)
    assert claims["grid", "images"]["difference"] == pytest.approx(-0.98)
    assert claims["grid+rope", "text"]["difference"] == pytest.approx(-5.02)
    assert result["both"] == {"grid": "holds", "grid+rope": "holds"}
    assert len(result["comparisons"]) == 24
    assert "secret" not in json.dumps(result)
    text = "\n".join(module.markdown(result))
    assert "| fixed - strided | -1.0200" in text
    assert "strided is better than fixed on images, positions grid: holds" in text


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--text names no file"),
        (["--text", "missing.txt"], "there is no source 'missing.txt'"),
        (["--text", "digits.npy", "--images", "digits.npy"], "is images; give a text"),
        (["--text", "a.txt", "--images", "a.txt"], "no set of images of 28x28x1"),
        (["--text", "a.txt", "--images", "small.npy"], "no set of images of 28x28x1"),
        (["--quick", "--seeds", "1"], "give two or more different ones"),
        (["--quick", "--seeds", "1,x"], "give whole numbers"),
        (["--quick", "--out", "a.txt"], "give a name that ends in .json"),
        (["--quick", "--resume"], "--resume needs the --out"),
        (["--quick", "--workers", "0"], "--workers is 0"),
        (["--quick", "--positions", "rope"], "--positions is 'rope'; give some of grid,grid+rope"),
    ],
)
def test_mistakes(flags, sentence, tmp_path, monkeypatch, capsys, benchmark_module):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("text")
    np.save("digits.npy", np.zeros((3, 28, 28), np.uint8))
    np.save("small.npy", np.zeros((3, 8, 8), np.uint8))
    monkeypatch.setattr(sys, "argv", ["pattern_by_data.py", *flags])
    with pytest.raises(SystemExit) as ended:
        benchmark_module.main()
    assert ended.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
