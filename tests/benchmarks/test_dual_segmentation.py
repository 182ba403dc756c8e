"""The segmentation benchmark at a tiny size: scenes, scores, and what a run leaves behind."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_tx.errors import UserError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
ARM = {
    *("pattern", "channel_form", "miou", "context_miou", "class_ious", "minus_none"),
    *("minus_dense", "pairs", "step_s", "losses", "peak_bytes"),
    *("alpha", "beta"),
}


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCHMARKS / "dual_segmentation.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@ON_LINUX
def test_a_quick_run_and_its_resumption(tmp_path):
    out = tmp_path / "result.json"
    arguments = ["--quick", "--arms", "none;position;criss-cross, twice", "--out", str(out)]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "6 of 6 runs" in done.stderr

    result = json.loads(out.read_text())
    assert list(result["arms"]) == ["none", "position", "criss-cross, twice"]
    for row in result["arms"].values():
        assert set(row) == ARM
        assert len(row["miou"]) == len(row["losses"]) == 2
        assert all(0 < miou < 1 for miou in row["miou"])
        assert all(losses[-1] < 0.7 * losses[0] for losses in row["losses"])
        assert row["peak_bytes"] > 0 and row["step_s"] > 0
    pairs = {arm: row["pairs"] for arm, row in result["arms"].items()}
    assert pairs == {
        "none": 400,
        "position": 160_000,
        "criss-cross, twice": 2 * 400 * 39,
    }
    assert result["arms"]["none"]["minus_none"]["by_seed"] == [0, 0]
    assert result["arms"]["position"]["minus_dense"]["difference"] == 0
    assert result["provenance"]["command"].startswith("python dual_segmentation.py")
    assert result["provenance"]["machine"]["threads"] == 1
    for name in ("result-masks.png", "result-attention.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")

    # Without the last run, all others are kept, and that one comes out as it did.
    journal = tmp_path / "result.runs.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join(lines[:-1]) + "\n")
    again = run(*arguments, "--resume")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count(" of 6 runs") == 1
    assert journal.read_text().splitlines()[:-1] == lines[:-1]
    old, new = (json.loads(text[-1]) for text in (lines, journal.read_text().splitlines()))
    assert old["settings"] == new["settings"]
    for key in ("losses", "confusion", "n_parameters"):
        assert old["result"][key] == new["result"][key]


@ON_LINUX
def test_costs_of_the_position_attention(tmp_path):
    out = tmp_path / "costs.json"
    done = run("--costs", "--sides", "6,4", "--rounds", "2", "--out", str(out))
    assert done.returncode == 0, done.stderr
    from position_costs import CONTENDERS, TOLERANCE

    result = json.loads(out.read_text())
    assert list(result["sides"]) == ["4", "6"]
    for rows in result["sides"].values():
        assert list(rows) == list(CONTENDERS)
        assert all(len(row["forward_s"]) == len(row["backward_s"]) == 2 for row in rows.values())
    pairs = {name: row["pairs"] for name, row in result["sides"]["6"].items()}
    assert pairs["dense, as released"] == 36**2
    assert pairs["rows, then columns"] == 2 * 36 * 6
    assert pairs["criss-cross, once"] == 36 * 11
    assert pairs["tiles, then lattice"] == 36 * 9 + 36 * 4
    assert all(error < TOLERANCE for error in result["relative_errors"].values())
    assert len(result["crossovers"]) == 5 * 2 * 2
    assert "| rows, then columns | " in done.stdout
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "none;position;rows"], "--arms has 'rows'; the arms are none; channel;"),
        (["--arms", "none;channel"], "--arms lacks 'position', which the others are compared"),
        (["--seeds", "1,1"], "--seeds is '1,1'; give different numbers, each 0 or more"),
        (["--seeds", "two"], "--seeds is 'two'; give whole numbers"),
        (["--sides", "16,1"], "--sides is '16,1'; give different numbers, each 2 or more"),
        (["--steps", "0"], "--steps is 0; give 1 or more"),
        (["--out", "result.png"], "give a name that ends in .json"),
        (["--resume"], "give --out"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message, monkeypatch, capsys):
    import dual_segmentation

    monkeypatch.setattr(sys, "argv", ["dual_segmentation.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        dual_segmentation.arguments()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


# --- Scenes -------------------------------------------------------------------------------------


def plain_digits():
    """Digits whose ink says which kind they are: 150 and the kind, as full boxes of some sizes."""
    sizes = [(20, 11), (17, 5), (13, 19)]
    images = np.zeros((7 * len(sizes), 28, 28), np.uint8)
    labels = np.repeat(np.arange(7), len(sizes))
    for image, label, (h, w) in zip(images, labels, sizes * 7, strict=True):
        image[3 : 3 + h, 7 : 7 + w] = 150 + label
    return images, labels


@pytest.fixture
def maker():
    from scenes import SceneMaker

    return SceneMaker(*plain_digits())


def test_classes_are_told_by_ink_and_frame(maker):
    scenes, masks = maker.compose(53, seed=3)
    assert scenes.shape == masks.shape == (53, 80, 80)
    n_framed = 0
    for scene, mask in zip(scenes, masks, strict=True):
        framed = (scene == 255).any()
        n_framed += framed
        ink = (scene >= 150) & (scene < 255)
        inks = set(scene[ink].tolist())
        assert inks <= {150, 151, 152, 153, 154}
        assert inks & {153, 154} and inks & {150, 151, 152}
        for value in inks:
            own = 1 + value - 150 + (2 if framed and value >= 153 else 0)
            assert set(mask[scene == value].tolist()) == {own}
        # The mask is ink and its neighbours, all of the same class.
        padded = np.pad(ink, 1)
        near = np.zeros_like(ink)
        for dy, dx in product(range(3), repeat=2):
            near |= padded[dy : dy + 80, dx : dx + 80]
        assert (near == (mask > 0)).all()
        assert set(scene[~ink].tolist()) <= {0, 255}
    assert 15 < n_framed < 38


def boxes_of(mask):
    """The connected pieces of a mask, as first and last rows and columns."""
    left, found = set(zip(*(x.tolist() for x in np.nonzero(mask)), strict=True)), []
    while left:
        piece, front = set(), [left.pop()]
        while front:
            y, x = front.pop()
            piece.add((y, x))
            for near in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if near in left:
                    left.remove(near)
                    front.append(near)
        rows, columns = zip(*piece, strict=True)
        found.append((min(rows), max(rows), min(columns), max(columns)))
    return found


def test_digits_lie_apart_and_one_may_be_framed(maker):
    scenes, masks = maker.compose(29, seed=5)
    for scene, mask in zip(scenes, masks, strict=True):
        boxes = boxes_of(mask)
        assert 3 <= len(boxes) <= 5
        frames = boxes_of(scene == 255)
        assert len(frames) <= 1
        for top, bottom, left, right in frames:
            inside = [b for b in boxes if top < b[0] and b[1] < bottom and left < b[2]]
            inside = [b for b in inside if b[3] < right]
            assert len(inside) == 1
            (y, last_y, x, last_x) = inside[0]  # of the mask, a pixel beyond the digit's box
            assert (y - top, bottom - last_y, x - left, right - last_x) == (2, 2, 2, 2)
            assert scene[y + 1, x + 1] in (150, 151, 152)


def test_scenes_come_from_their_seed(maker):
    scenes, masks = maker.compose(7, seed=(1, 2, 3))
    same, same_masks = maker.compose(7, seed=(1, 2, 3))
    assert (scenes == same).all() and (masks == same_masks).all()
    other, _ = maker.compose(7, seed=(1, 2, 4))
    assert not (scenes == other).all()


def test_scenes_that_cannot_be_made():
    from scenes import SceneMaker

    images, labels = plain_digits()
    with pytest.raises(UserError, match="none of the 18 given is a 3"):
        SceneMaker(images[labels != 3], labels[labels != 3])
    with pytest.raises(UserError, match="scenes of 40 pixels have no room for digits of 20"):
        SceneMaker(images, labels, size=40)


def some_run(**settings):
    from dual_segmentation import QUICK
    from segmentation_training import Run

    return Run(**{"arm": "none", "seed": 3} | QUICK | settings)


def test_training_and_testing_share_no_digit():
    from segmentation_training import scene_makers

    training, testing = (
        {digit.tobytes() for digits in maker._digits for digit in digits}
        for maker in scene_makers(some_run())
    )
    assert len(training) > 80 and len(testing) > 30
    assert not training & testing


def test_arms_differ_in_nothing_but_who_reads_whom():
    from segmentation_training import ARMS

    states = [some_run(arm=arm).network().state_dict() for arm in ARMS]
    for state in states[1:]:
        assert all(torch.equal(state[name], states[0][name]) for name in states[0])


def test_every_pattern_fits_the_map_and_is_counted():
    from segmentation_training import ARMS, count_pairs, sized, tile_edge

    assert [tile_edge(width) for width in (16, 20, 64, 128, 7)] == [4, 5, 8, 16, 7]
    assert sized("tiles:W:E,lattice:W:E", 20) == "tiles:20:5,lattice:20:5"
    inside = [(y, x) for y in range(6) for x in range(6)]
    expected = {
        "dense": lambda a, b: True,
        "crisscross:6": lambda a, b: a[0] == b[0] or a[1] == b[1],
        "rows:6": lambda a, b: a[0] == b[0],
        "columns:6": lambda a, b: a[1] == b[1],
        "tiles:6:3": lambda a, b: a[0] // 3 == b[0] // 3 and a[1] // 3 == b[1] // 3,
        "lattice:6:3": lambda a, b: a[0] % 3 == b[0] % 3 and a[1] % 3 == b[1] % 3,
    }
    counts = {
        word: sum(allowed(a, b) for a in inside for b in inside)
        for word, allowed in expected.items()
    }
    for pattern, _ in ARMS.values():
        if pattern:
            steps = sized(pattern.replace("W*2", "W,crisscross:W"), 6).split(",")
            assert count_pairs(sized(pattern, 6), 36) == sum(counts[step] for step in steps)


# --- Scores -------------------------------------------------------------------------------------


def test_confusion_and_iou_by_counting():
    from segmentation_scores import confusion_matrix, ious, mean_iou

    rng = np.random.default_rng(2)
    true, predicted = rng.integers(3, size=(2, 5, 7, 11)).astype(np.uint8)
    counts = confusion_matrix(predicted, true, 5)
    expected = []
    for c in range(5):
        pixels = list(zip(true.flat, predicted.flat, strict=True))
        both = sum(t == c and p == c for t, p in pixels)
        either = sum(t == c or p == c for t, p in pixels)
        assert counts[c].sum() == sum(t == c for t, _ in pixels)
        expected.append(both / either if either else np.nan)
    np.testing.assert_allclose(ious(counts), expected, rtol=1e-15)
    assert mean_iou(counts) == pytest.approx(np.mean(expected[:3]), rel=1e-15)
    assert mean_iou(counts, (0, 2)) == pytest.approx((expected[0] + expected[2]) / 2, rel=1e-15)


def random_counts(*shape, seed=0):
    return np.random.default_rng(seed).integers(1, 50, size=(*shape, 3, 3))


def test_the_interval_of_one_group_is_that_of_the_seeds():
    """With two seeds of one group, a resample is one of three means; the tails are the extremes."""
    from segmentation_scores import mean_iou, paired_difference

    a, b = random_counts(2, 1, seed=1), random_counts(2, 1, seed=2)
    found = paired_difference(a, b)
    by_seed = [float(mean_iou(a[s, 0]) - mean_iou(b[s, 0])) for s in range(2)]
    assert found["by_seed"] == pytest.approx(by_seed, rel=1e-12)
    assert found["difference"] == pytest.approx(sum(by_seed) / 2, rel=1e-12)
    assert (found["low"], found["high"]) == pytest.approx((min(by_seed), max(by_seed)), rel=1e-12)


def test_differences_are_paired():
    from segmentation_scores import paired_difference

    a, b = random_counts(5, 11, seed=1), random_counts(5, 11, seed=2)
    assert paired_difference(a, a) == {"difference": 0, "low": 0, "high": 0, "by_seed": [0] * 5}
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there["low"] < there["difference"] < there["high"]
    assert there["low"] == pytest.approx(-back["high"], rel=1e-9)
    # Much better in every group: nothing that is drawn can turn it round.
    better = b + 200 * np.eye(3, dtype=int)
    assert paired_difference(better, b)["low"] > 0


# --- Costs and pictures -------------------------------------------------------------------------


def test_the_gate_sees_another_pattern(monkeypatch):
    import position_costs

    real = position_costs.make_module

    def other(contender, width):
        return real("local" if contender == "criss-cross, once" else contender, width)

    monkeypatch.setattr(position_costs, "make_module", other)
    with pytest.raises(SystemExit, match="'criss-cross, once' is wrong before it is fast"):
        position_costs.measure_costs([4], rounds=1)


def test_a_size_too_small_for_its_memory_to_be_seen_is_left_out_of_crossovers():
    from position_costs import CONTENDERS, crossovers

    def rows(bytes_of_all):
        return {name: {"median_s": 1.0, "peak_bytes": bytes_of_all} for name in CONTENDERS}

    for crossover in crossovers({"4": rows(0), "6": rows(4096)}):
        sizes = ["36"] if crossover["quantity"] == "peak_bytes" else ["16", "36"]
        assert list(crossover["ratios"]) == sizes


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([(16, 4.0), (64, 0.25)], 32),
        ([(16, 0.9), (64, 0.5)], 16),
        ([(16, 0.9), (64, 1.5)], None),
        ([(16, 0.5), (64, 2.0), (256, 2**-1.0)], 128),
        ([], None),
    ],
)
def test_where_the_lines_cross(ratios, expected):
    from position_costs import first_below_one, sentence

    assert first_below_one(ratios) == expected
    said = sentence(
        {
            "contender": "local",
            "quantity": "median_s",
            "against": "dense, as released",
            "positions": expected,
            "ratios": {str(N): ratio for N, ratio in ratios},
        }
    )
    assert said.endswith(".")
    if expected:
        assert f"from {expected} positions" in said
        assert ("or fewer" in said) == (expected == ratios[0][0])


@pytest.mark.parametrize("arm", ["position", "local", "rows, then columns", "criss-cross, twice"])
def test_attention_of_a_position_is_the_product_of_the_steps(arm):
    from segmentation_pictures import attention_of_position

    run = some_run(arm=arm, size=24, seed=5)
    model = run.network().eval()
    attention = model.position_branch.attention
    torch.nn.init.ones_(attention.alpha)
    with torch.no_grad():
        attention.query.weight.mul_(3)
    image = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps = model.position_branch.before(model.trunk(image))
        together = torch.eye(36)
        for step in range(len(attention.pattern.layers)):
            rows = [attention.weights_of(maps, p, step).flatten() for p in range(36)]
            together = torch.stack(rows) @ together
    found = attention_of_position(model, image, 4, 1)
    assert found.shape == (6, 6)
    torch.testing.assert_close(found.flatten(), together[4 * 6 + 1])
    assert found.sum().item() == pytest.approx(1, abs=1e-5)
