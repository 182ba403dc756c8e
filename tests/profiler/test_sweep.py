"""Sweeps on a machine whose times and memory are formulas."""

from dataclasses import replace

import pytest

from sparse_tx.accounting import cache_bytes
from sparse_tx.accounting.generating import CACHE
from sparse_tx.config import ModelConfig, TrainingConfig
from sparse_tx.errors import UserError
from sparse_tx.profiler import forecast, laboratory
from sparse_tx.profiler.equal_cost import find_reaches
from sparse_tx.profiler.laboratory import Laboratory, Watcher
from sparse_tx.profiler.log import MeasurementLog
from sparse_tx.profiler.predict import predict_peak, work_flops
from sparse_tx.profiler.records import Ceilings, Measurement, Setting
from sparse_tx.profiler.room import find_fits
from sparse_tx.profiler.settings import at
from sparse_tx.profiler.sweep import Question, answer

RATE, BASELINE = 1e9, 1000
LABELS = ("dense", "local:sqrt,strided:sqrt")


class Machine:
    """Does a billion useful FLOPs in a second, and holds what is predicted."""

    def __init__(self):
        self.asked: list[Setting] = []

    def measure(self, setting, *, rounds, time_limit_s, memory_limit_bytes, want):
        self.asked.append(setting)
        seconds = work_flops(setting) / RATE
        peak = predict_peak(setting, "views").total
        if setting.model.engine == "reference":
            peak += 4 * 4 * setting.model.n_head * setting.model.seq_len**2
        return Measurement(
            engine="views",
            seconds=(seconds,) * rounds if "seconds" in want else (),
            peak_bytes=peak if "peak" in want else None,
            baseline_bytes=BASELINE,
        )


@pytest.fixture
def machine(monkeypatch):
    made = Machine()
    monkeypatch.setattr(laboratory, "measure", made.measure)
    monkeypatch.setattr(laboratory, "free_bytes", lambda device: 10**9)
    ceilings = Ceilings(gemm_flops_per_s=RATE, copy_bytes_per_s=1e9, fresh_bytes_per_s=float("inf"))
    monkeypatch.setattr(forecast, "measure_ceilings", lambda device, dtype: ceilings)
    return made


def make_setting(label, T, work="train", **model) -> Setting:
    defaults = dict(vocab_size=53, n_layer=2, n_head=2, n_embd=16, engine="views", position="none")
    config = ModelConfig(**defaults | model)
    return at(
        Setting(work=work, label=label, model=config, training=TrainingConfig(max_steps=1)), T
    )


def make_laboratory(log=None, **limits) -> Laboratory:
    return Laboratory(log, Watcher(), **{"rounds": 3, "limit_s": 1e9} | limits)


def make_question(lengths=(1024, 4096, 16384), **settings) -> Question:
    asked = tuple(make_setting(label, T) for label in LABELS for T in lengths)
    return Question(title="a test", settings=asked, **settings)


def test_times_are_predicted_from_two_small_lengths(machine):
    question = make_question((1024, 1 << 20))
    profile = answer(question, make_laboratory())
    assert max(setting.model.seq_len for setting in machine.asked) < 1 << 20
    assert [row.setting for row in profile.rows] == list(question.settings)
    for row in profile.rows:
        assert row.measurement is None
        assert row.prediction.seconds == pytest.approx(work_flops(row.setting) / RATE, rel=0.1)


def test_a_stated_rate_needs_no_machine(machine):
    profile = answer(make_question(flops_per_s=1e12), make_laboratory())
    assert machine.asked == []
    assert profile.ceilings is None
    for row in profile.rows:
        assert row.prediction.seconds == pytest.approx(work_flops(row.setting) / 1e12)


def test_everything_is_measured_the_cheapest_first(machine):
    profile = answer(make_question(measured=True, flops_per_s=RATE), make_laboratory())
    assert all(row.measurement.seconds for row in profile.rows)
    costs = [work_flops(setting) for setting in machine.asked]
    assert costs == sorted(costs)
    assert {(law.label, law.measured) for law in profile.laws} >= {(LABELS[1], True)}
    assert any(found.quantity == "seconds" for found in profile.crossovers)


def test_what_takes_too_long_is_not_begun(machine):
    question = make_question(measured=True, flops_per_s=RATE)
    profile = answer(question, make_laboratory(limit_s=50.0))
    for row in profile.rows:
        too_long = 2 * 1.2 * row.prediction.seconds > 50
        assert ("would take up to" in row.not_measured) == too_long
        assert (row.measurement is None) == too_long
    assert any(row.not_measured for row in profile.rows)


def test_what_does_not_fit_is_not_begun(machine, monkeypatch):
    monkeypatch.setattr(laboratory, "free_bytes", lambda device: 20_000_000)
    profile = answer(make_question(measured=True, flops_per_s=RATE), make_laboratory())
    for row in profile.rows:
        assert ("and 0.0 GB are free" in row.not_measured) == (row.prediction.peak_bytes > 19e6)
    assert any(row.not_measured for row in profile.rows)


def test_an_interrupted_sweep_goes_on(machine, tmp_path, monkeypatch):
    question = make_question(measured=True)
    measure_all = machine.measure

    def interrupted(setting, **asked):
        if len(machine.asked) == 6:
            raise KeyboardInterrupt
        return measure_all(setting, **asked)

    monkeypatch.setattr(laboratory, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        answer(question, make_laboratory(MeasurementLog(tmp_path / "log")))
    monkeypatch.setattr(laboratory, "measure", machine.measure)
    resumed = answer(question, make_laboratory(MeasurementLog(tmp_path / "log")))
    # Twice at most: a calibration asks for times and parts, a measurement for the peak too.
    assert max(machine.asked.count(setting) for setting in machine.asked) <= 2
    assert len(machine.asked) == 4 + len(question.settings)
    assert resumed.rows == answer(question, make_laboratory()).rows


def test_the_longest_that_fits(machine):
    memory = 60_000_000
    settings = [make_setting(label, 1024) for label in LABELS]
    fits = find_fits(settings, memory, make_laboratory())
    assert [fit.largest for fit in fits] == ["seq_len", "batch_size"] * 2
    for fit in fits:
        assert fit.baseline_bytes == BASELINE
        assert fit.peak_bytes <= memory
        longer = at(fit.setting, fit.setting.model.seq_len + 1)
        more = at(fit.setting, 1024, fit.value + 1)
        beyond = longer if fit.largest == "seq_len" else more
        assert predict_peak(beyond, "views").total > 0.97 * (memory - BASELINE) - 1
        assert fit.confirmation.peak_bytes + BASELINE == fit.peak_bytes


def test_no_longer_than_a_grid_of_positions(machine):
    setting = make_setting("dense", 64, seq_len=64, position="grid", position_shape=(9, 9))
    length, batch = find_fits([setting], 60_000_000, make_laboratory())
    assert (length.largest, length.value) == ("seq_len", 81)
    assert batch.largest == "batch_size" and batch.value > 1


def test_where_memory_is_not_told_all_is_measured(machine, monkeypatch):
    def unknown(device):
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(laboratory, "free_bytes", unknown)
    profile = answer(make_question(measured=True), make_laboratory())
    assert all(row.measurement.seconds for row in profile.rows)


def test_the_longest_prompt_has_room_for_its_cache(machine):
    memory = 60_000_000
    (fit,) = find_fits([make_setting("dense", 1024, "prefill")], memory, make_laboratory())
    cache = cache_bytes(fit.setting.model).allocated.total
    peak = predict_peak(fit.setting, "views")
    assert memory / 4 < cache <= peak.parts[CACHE]
    assert peak.total + BASELINE == fit.peak_bytes <= memory
    assert fit.confirmation.peak_bytes == peak.total


def test_what_fits_but_takes_too_long_is_not_run(machine):
    fits = find_fits([make_setting("dense", 1024)], 60_000_000, make_laboratory(limit_s=10.0))
    assert "would take up to" in fits[0].not_confirmed
    assert fits[0].confirmation is None


def test_equal_cost(machine):
    settings = [make_setting(label, 4096, "attention") for label in LABELS]
    reaches = find_reaches(settings, 512, make_laboratory(), measured=True)
    flops, weights, textbook, fused, seconds = reaches
    dense = make_setting("dense", 512, "attention")
    assert [found.quantity for found in reaches] == [
        "useful_flops",
        "weights_bytes",
        "peak_bytes",
        "peak_bytes",
        "seconds",
    ]
    assert flops.budget == work_flops(dense)
    assert work_flops(at(settings[1], flops.length)) <= flops.budget
    assert work_flops(at(settings[1], flops.length + 1)) > flops.budget
    # The machine's seconds are FLOPs, and time is looked for in a few trials.
    assert 0.8 * flops.length <= seconds.length <= flops.length
    assert weights.budget == 4 * 2 * 512 * 513 // 2
    assert weights.length == flops.length  # both go by the pairs
    # Beside the inputs: fused attention holds out and three gradients, of 16 numbers a token.
    assert fused.budget == pytest.approx(512 * 4 * 4 * 16, rel=0.1)
    assert 1 <= fused.length <= 1.05 * 512  # tiles of the engine views weigh at such a size
    assert textbook.budget - fused.budget == 4 * 4 * 2 * 512**2
    assert textbook.length > 10 * fused.length


def test_each_pattern_is_timed_from_its_own_length_on(machine):
    labels = ("local:32", "local:8")
    settings = [make_setting(label, 128, "attention") for label in labels]
    reaches = find_reaches(settings, 128, make_laboratory(), measured=True)
    flops = {found.label: found.length for found in reaches if found.quantity == "useful_flops"}
    assert flops["local:8"] > 3 * flops["local:32"]
    # The machine's seconds are FLOPs: the first trial is right, and the others stay near it.
    for found in reaches:
        if found.quantity == "seconds":
            assert 0.8 * flops[found.label] <= found.length <= flops[found.label]


def test_dense_attention_that_fails_is_no_budget(machine, monkeypatch):
    """What it held until then is not what it costs."""

    def failing(setting, **asked):
        found = machine.measure(setting, **asked)
        if setting.model.engine == "reference":
            return replace(found, peak_bytes=10**6, failure="out of memory: killed")
        if setting.label == "dense" and "seconds" in asked["want"]:
            return replace(found, seconds=(), failure="took longer than 60 s")
        return found

    monkeypatch.setattr(laboratory, "measure", failing)
    settings = [make_setting("local:32", 128, "attention")]
    flops, _, textbook, fused, seconds = find_reaches(
        settings, 128, make_laboratory(), measured=True
    )
    assert flops.length and fused.length and fused.measured
    for found, words in ((textbook, "out of memory"), (seconds, "took longer than 60 s")):
        assert found.length is None and found.budget is None and not found.measured
        assert words in found.how


def test_a_reach_that_cannot_be_run_is_a_prediction(machine, monkeypatch):
    def failing(setting, **asked):
        found = machine.measure(setting, **asked)
        if setting.label != "dense":
            return replace(found, peak_bytes=None, failure="took longer than 60 s")
        return found

    monkeypatch.setattr(laboratory, "measure", failing)
    settings = [make_setting("local:32", 128, "attention")]
    fused = find_reaches(settings, 128, make_laboratory(), measured=True)[3]
    assert fused.length > 1 and not fused.measured
    assert "not measured (took longer than 60 s)" in fused.how


def test_sizes_that_come_to_no_pattern_at_some_length_end_a_search_and_nothing_else(machine):
    """There are no more columns than a block has: root T is 64 where T is 4,096."""
    settings = [make_setting("fixed:64:sqrt", 1024)]
    length, _ = find_fits(settings, 10**9, make_laboratory())
    assert 4096 <= length.value < 4300
    settings = [make_setting("fixed:64:sqrt", 1024, "attention")]
    reaches = find_reaches(settings, 8192, make_laboratory(), measured=True)
    assert all(4096 <= found.length < 4300 for found in reaches[:2])


def test_what_a_process_holds_has_to_be_known(machine, monkeypatch):
    slow = Measurement(failure="took longer than 0.3 s")
    monkeypatch.setattr(laboratory, "measure", lambda setting, **asked: slow)
    with pytest.raises(UserError, match=r"could not be measured: took longer than 0\.3 s; raise"):
        find_fits([make_setting("dense", 1024)], 10**9, make_laboratory())


def test_memory_at_equal_cost_is_known_of_fp32_alone(machine):
    setting = make_setting("local:32", 128, "attention")
    setting = replace(setting, training=replace(setting.training, precision="bf16"))
    reaches = find_reaches([setting], 128, make_laboratory(), measured=True)
    assert [found.quantity for found in reaches] == [
        "useful_flops",
        "weights_bytes",
        "peak_bytes",
        "seconds",
    ]
    assert reaches[2].length is None and "predicted memory is that of fp32" in reaches[2].how
