"""Calibration against machines whose time is known by a formula."""

from dataclasses import replace

import numpy as np
import pytest

from sparse_tx.accounting import attended_pairs, keys_of_last, useful_flops
from sparse_tx.config import ModelConfig, TrainingConfig
from sparse_tx.errors import UserError
from sparse_tx.profiler.calibration import (
    calibrate,
    calibration_lengths,
    seconds_at_rate,
    seconds_to_flops,
)
from sparse_tx.profiler.patterns_by_length import at_length
from sparse_tx.profiler.records import Measurement, Setting

PATTERNS = (
    "dense",
    "local:128,strided:128",
    "fixed:128:32",
    "local:128",
    "local:sqrt,strided:sqrt",
)


def make_setting(label, T, *, work="train", recompute=False, **model):
    pattern = at_length(label, T)
    sizes = dict(n_layer=4, n_head=2, n_embd=128, recompute=recompute) | model
    return Setting(
        work=work,
        label=label,
        model=ModelConfig(seq_len=T, pattern=pattern, **sizes),
        training=TrainingConfig(max_steps=1),
    )


def true_parts(setting):
    """Seconds on a machine much like two CPU cores."""
    T, pairs = setting.model.seq_len, attended_pairs(setting.model).total
    flops = useful_flops(setting.model)
    return {
        "attention.forward": 5e-6 * T + 3e-9 * pairs,
        "attention.backward": 5e-9 * pairs,
        "feed_forward.forward": 1e-3 + flops.feed_forward.forward / 8e10,
        "feed_forward.backward": (flops.feed_forward.total - flops.feed_forward.forward) / 8e10,
        "qkv.forward": 2e-6 * T,
        "norms.backward": 3e-6 * T,
        "head_and_loss.forward": 2e-3 + 9e-6 * T,
        "optimiser": 0.03,
    }


def true_seconds(setting):
    return sum(true_parts(setting).values())


def measure(setting, *, clocks=1.0, noise=lambda: 1.0, parts=true_parts):
    """``clocks``: by what factor the round with clocks in it is slower."""
    parts_s = {part: seconds * noise() for part, seconds in parts(setting).items()}
    total = sum(parts_s.values())
    slower = {part: seconds * clocks for part, seconds in parts_s.items()}
    return Measurement(seconds=(0.9 * total, total, 5 * total), parts_s=slower)


def calibrated(labels, lengths, **how):
    settings = [make_setting(label, T) for label in labels for T in lengths]
    return calibrate([(setting, measure(setting, **how)) for setting in settings])


@pytest.mark.parametrize("T", [1024, 3000, 8192, 16_384, 100_000])
@pytest.mark.parametrize("label", PATTERNS)
def test_a_machine_of_this_kind_is_recovered(label, T):
    model = calibrated(["dense", label], (1024, 4096), clocks=1.3)
    setting = make_setting(label, T)
    # Feed-forward FLOPs grow by more than T from 16,384 tokens on, which two lengths cannot tell
    # from a token's getting dearer.
    assert model.seconds(setting) == pytest.approx(true_seconds(setting), rel=2e-3)
    if T <= 16_384:
        assert model.seconds(setting) == pytest.approx(true_seconds(setting), rel=1e-6)


@pytest.mark.parametrize("label", ["dense", "fixed:128:32", "local:128"])
def test_a_pattern_alone(label):
    """Without another pattern's rate; local attention leaves it open, and needs it not."""
    model = calibrated([label], (1024, 4096))
    setting = make_setting(label, 65_536)
    assert model.seconds(setting) == pytest.approx(true_seconds(setting), rel=0.01)


@pytest.mark.parametrize("seed", range(20))
def test_noise_of_five_percent(seed):
    generator = np.random.default_rng(seed)
    model = calibrated(PATTERNS, (1024, 4096), noise=lambda: generator.normal(1, 0.05))
    for label in PATTERNS:
        for T in (8192, 16_384, 65_536):
            setting = make_setting(label, T)
            assert model.seconds(setting) == pytest.approx(true_seconds(setting), rel=0.25)


@pytest.mark.parametrize("seed", range(5))
def test_noise_at_the_lengths_that_are_chosen(seed):
    generator = np.random.default_rng(seed)
    points = []
    for label in PATTERNS:
        for T in calibration_lengths(make_setting(label, 1024), 262_144):
            setting = make_setting(label, T)
            points.append((setting, measure(setting, noise=lambda: generator.normal(1, 0.05))))
    model = calibrate(points)
    for label in PATTERNS:
        setting = make_setting(label, 262_144)
        assert model.seconds(setting) == pytest.approx(true_seconds(setting), rel=0.25)


def test_tokens_that_cost_more_from_some_length_on():
    """The excess: as when large buffers are not reused any more."""

    def parts(setting):
        T = setting.model.seq_len
        return {"other.forward": 1e-5 * T + 3e-5 * max(0, T - 4096)}

    lengths = (4096, 16_384)
    settings = [make_setting("local:128", T) for T in lengths]
    model = calibrate([(setting, measure(setting, parts=parts)) for setting in settings])
    for T in (2048, *lengths, 65_536):
        expected = sum(parts(make_setting("local:128", T)).values())
        assert model.seconds(make_setting("local:128", T)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("work", ["attention", "forward", "prefill"])
def test_times_without_parts(work):
    """Three unknowns and two times: what dense attention is to take follows from its FLOPs."""

    def parts(setting):
        flops = useful_flops(setting.model)
        attention = flops.scores.forward + flops.values.forward
        all_parts = attention if setting.work == "attention" else flops.all_parts.forward
        return {"whole": all_parts / 7e10}

    def without_parts(setting):
        return Measurement(seconds=(parts(setting)["whole"],))

    settings = [make_setting("dense", T, work=work) for T in (1024, 4096, 16_384)]
    model = calibrate([(setting, without_parts(setting)) for setting in settings[:2]])
    expected = sum(parts(settings[2]).values())
    assert model.seconds(settings[2]) == pytest.approx(expected, rel=0.02)


def true_step(setting):
    """Seconds of a decoding step: the weights are read, and what the pattern reads of the cache."""
    return 5e-4 + 5e-8 * keys_of_last(setting.model).total


def steps_calibrated(labels, *, noise=lambda: 1.0):
    points = []
    for label in labels:
        for T in calibration_lengths(make_setting(label, 1024, work="decode"), 2**20):
            setting = make_setting(label, T, work="decode")
            seconds = true_step(setting) * noise()
            # A native step has no parts, whatever it spends its time on.
            parts = {"other.forward": 1.3 * seconds}
            points.append((setting, Measurement(seconds=(seconds,), parts_s=parts)))
    return calibrate(points)


@pytest.mark.parametrize("label", PATTERNS)
def test_decoding_takes_what_the_pattern_reads(label):
    model = steps_calibrated(["dense", label])
    for T in (1024, 65_536, 2**20):
        setting = make_setting(label, T, work="decode")
        assert model.seconds(setting) == pytest.approx(true_step(setting), rel=0.01)


def test_decoding_grows_as_its_pattern_does():
    """Not at all with a window, and with one key in a stride."""

    def seconds(label, T):
        return model.seconds(make_setting(label, T, work="decode"))

    model = steps_calibrated(["dense", "local:128", "strided:128"])
    assert seconds("local:128", 2**20) == pytest.approx(seconds("local:128", 1024), rel=1e-9)
    longer, long = (seconds("strided:128", T) - seconds("strided:128", 128) for T in (2**21, 2**20))
    assert longer == pytest.approx(2 * long, rel=1e-3)
    dense = seconds("dense", 2**20) - seconds("dense", 1)
    assert dense == pytest.approx(128 * long, rel=0.01)


@pytest.mark.parametrize("label", PATTERNS)
@pytest.mark.parametrize("seed", range(10))
def test_decoding_with_noise(label, seed):
    """Where a pattern reads few keys beside the weights, dense attention tells what one takes."""
    generator = np.random.default_rng(seed)
    model = steps_calibrated(["dense", label], noise=lambda: generator.normal(1, 0.05))
    setting = make_setting(label, 2**20, work="decode")
    assert model.seconds(setting) == pytest.approx(true_step(setting), rel=0.25)


@pytest.mark.parametrize("label", PATTERNS)
@pytest.mark.parametrize("seed", range(10))
def test_decoding_of_one_pattern_alone_with_noise(label, seed):
    """Without dense attention, noise hides what few keys take; twice the length is in sight."""
    generator = np.random.default_rng(seed)
    model = steps_calibrated([label], noise=lambda: generator.normal(1, 0.05))
    setting = make_setting(label, 2**18, work="decode")
    assert model.seconds(setting) == pytest.approx(true_step(setting), rel=0.3)


def test_decoding_is_calibrated_where_cache_and_text_are_small():
    chosen = {
        label: calibration_lengths(make_setting(label, 1024, work="decode", n_layer=16), 2**20)
        for label in ("dense", "local:128", "local:sqrt,strided:sqrt")
    }
    # 16 kB a token: a gigabyte is 2^16 of them; of every other layer, twice as many.
    assert chosen["dense"] == (1024, 2**16)
    assert chosen["local:128"] == (1024, 2**17)
    assert chosen["local:sqrt,strided:sqrt"][1] in (2**16, 2**17)
    short = calibration_lengths(make_setting("dense", 1024, work="decode"), 4096, flops_per_s=1)
    assert short == (1024, 4096)


def test_what_was_not_calibrated_has_no_time():
    points = [(make_setting("dense", T), measure(make_setting("dense", T))) for T in (1024, 2048)]
    model = calibrate(points)
    assert model.seconds(make_setting("dense", 4096)) is not None
    for other in (
        make_setting("local:128", 4096),
        make_setting("dense", 4096, recompute=True),
        make_setting("dense", 4096, work="forward"),
        make_setting("dense", 4096, n_embd=256),
        make_setting("dense", 4096, engine="views"),
        replace(
            make_setting("dense", 4096), training=TrainingConfig(max_steps=1, optimiser="muon")
        ),
    ):
        assert model.seconds(other) is None
    # One length is not enough, nor are measurements without times or that failed.
    assert calibrate(points[:1]).seconds(points[0][0]) is None
    failed = replace(points[1][1], failure="out of memory")
    assert calibrate([points[0], (points[1][0], failed)]).seconds(points[0][0]) is None
    untimed = replace(points[1][1], seconds=())
    assert calibrate([points[0], (points[1][0], untimed)]).seconds(points[0][0]) is None
    assert calibrate([]).seconds(points[0][0]) is None


def test_patterns_with_and_without_parts_side_by_side():
    lengths = (1024, 4096)
    points = [(make_setting("dense", T), measure(make_setting("dense", T))) for T in lengths]
    for T in lengths:
        setting = make_setting("fixed:128:32", T)
        points.append((setting, replace(measure(setting), parts_s={})))
    model = calibrate(points)
    for label, error in (("dense", 1e-6), ("fixed:128:32", 0.25)):
        setting = make_setting(label, 16_384)
        assert model.seconds(setting) == pytest.approx(true_seconds(setting), rel=error)


def test_times_are_never_negative_and_grow():
    """Measurements that make no sense: the longer ones are faster."""
    backwards = dict(zip((1024, 2048, 4096), (3.0, 2.0, 1.0), strict=True))
    settings = [make_setting("dense", T) for T in backwards]
    times = [
        Measurement(seconds=(backwards[setting.model.seq_len],), parts_s={"attention.forward": 1.0})
        for setting in settings
    ]
    model = calibrate(zip(settings, times, strict=True))
    predicted = [model.seconds(make_setting("dense", T)) for T in (1, 100, 10_000, 10**6)]
    assert predicted == sorted(predicted) and predicted[0] > 0


@pytest.mark.parametrize("label", PATTERNS)
@pytest.mark.parametrize("work", ["train", "attention", "forward", "prefill", "decode"])
def test_lengths_that_are_chosen(label, work):
    setting = make_setting(label, 4096, work=work)
    for longest in (1, 2, 1000, 1024, 2048, 5000, 2**20):
        shorter, longer = calibration_lengths(setting, longest)
        assert 1 <= shorter <= longer <= longest
        assert shorter < longer or longest == 1
        assert shorter >= min(1024, longest // 2)
    assert longer >= 4 * shorter or longer == 2048


def test_sparse_patterns_are_calibrated_at_longer_lengths():
    chosen = {
        label: calibration_lengths(make_setting(label, 1024), 2**20)[1]
        for label in ("dense", "local:128,strided:128")
    }
    assert chosen == {"dense": 4096, "local:128,strided:128": 16_384}
    slow = calibration_lengths(make_setting("dense", 1024), 2**20, flops_per_s=1e6)
    assert slow == (1024, 2048)


def test_times_at_a_stated_rate():
    assert seconds_at_rate({"scores": 6 * 10**9, "values": 4 * 10**9}, 1e10) == 1.0
    assert seconds_to_flops(3.0, 1e10) == 3e10
    for rate in (0, -1e9, float("nan"), float("inf")):
        with pytest.raises(UserError, match="must be above 0"):
            seconds_at_rate({"scores": 1}, rate)
    with pytest.raises(UserError, match="a time of 0 s"):
        seconds_to_flops(0, 1e10)
    with pytest.raises(UserError, match="the longest length is 0"):
        calibration_lengths(make_setting("dense", 64), 0)


def test_a_pattern_that_reads_nothing_at_such_lengths():
    """Summary columns are read from the next block on."""
    settings = [make_setting("summary:8192:8", T, work="attention") for T in (1024, 2048)]
    points = [(setting, Measurement(seconds=(0.5,))) for setting in settings]
    assert calibrate(points).seconds(settings[0]) >= 0
