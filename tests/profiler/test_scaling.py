"""Laws, crossovers and reach, against values made by known laws."""

from dataclasses import replace
from math import inf, isinf, log, nan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_tx.config import ModelConfig, TrainingConfig
from sparse_tx.errors import UserError
from sparse_tx.patterns import parse_pattern
from sparse_tx.profiler.records import Measurement, Prediction, Row, Setting
from sparse_tx.profiler.scaling import crossovers, fit_power_law, power_laws, reach

LENGTHS = (1024, 2048, 4096, 8192, 16_384)


def make_row(label, T, *, flops=1, peak=1, seconds=None, measured=None, recompute=False):
    """``measured`` is seconds and bytes of a measurement."""
    setting = Setting(
        work="train",
        label=label,
        model=ModelConfig(seq_len=T, pattern=label, recompute=recompute),
        training=TrainingConfig(max_steps=1),
    )
    prediction = Prediction(
        pairs=1,
        dense_pairs=1,
        useful_flops={"scores": flops // 2, "values": flops - flops // 2},
        nominal_flops={},
        peak_bytes=peak,
        peak_parts={},
        cache_stored_bytes=0,
        cache_read_bytes=0,
        cache_allocated_bytes=0,
        parameters=1,
        seconds=seconds,
        useful_tile_share=1.0,
    )
    measurement = None
    if measured:
        middle, held = measured
        measurement = Measurement(seconds=(3 * middle, middle, middle / 2), peak_bytes=held)
    return Row(setting=setting, prediction=prediction, measurement=measurement)


def only(found, **what):
    (one,) = (x for x in found if all(getattr(x, name) == value for name, value in what.items()))
    return one


@given(
    exponent=st.floats(-3, 3),
    coefficient=st.floats(1e-9, 1e9),
    lengths=st.lists(st.integers(1, 2**31), min_size=2, max_size=9, unique=True),
)
def test_exact_laws_are_recovered(exponent, coefficient, lengths):
    spread = log(max(lengths) / min(lengths))
    values = [coefficient * T**exponent for T in lengths]
    found, low, high, factor = fit_power_law(lengths, values)
    assert found == pytest.approx(exponent, abs=1e-12 / spread + 1e-11)
    for T, value in zip(lengths, values, strict=True):
        assert factor * T**found == pytest.approx(value, rel=1e-9)
    if len(lengths) == 2:
        assert (low, high) == (-inf, inf)
    else:
        assert low <= found <= high
        assert high - low < 1e-5 / spread


def test_the_interval_by_hand():
    """Slope and standard error by the normal equations; t of 3 degrees of freedom by a table."""
    lengths, values = (1000, 2000, 4000, 8000, 16_000), (1.0, 2.3, 3.9, 8.7, 15.0)
    design = np.stack([np.ones(5), np.log(lengths)], axis=1)
    inverse = np.linalg.inv(design.T @ design)
    solution = inverse @ design.T @ np.log(values)
    residuals = np.log(values) - design @ solution
    margin = 3.182446305284263 * sqrt(residuals @ residuals / 3 * inverse[1, 1])
    expected = (solution[1], solution[1] - margin, solution[1] + margin, np.exp(solution[0]))
    assert fit_power_law(lengths, values) == pytest.approx(expected, rel=1e-9)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(1000):
        values = np.array(LENGTHS) ** 1.5 * np.exp(generator.normal(0, 0.1, len(LENGTHS)))
        _, low, high, _ = fit_power_law(LENGTHS, values)
        held += low <= 1.5 <= high
    assert 930 <= held <= 970  # three standard deviations around 950


@pytest.mark.parametrize(
    "lengths, values, message",
    [
        ((1024,), (1.0,), "1 length says nothing"),
        ((1024, 1024), (1.0, 2.0), "1 length says nothing"),
        ((), (), "0 length says nothing"),
        ((1, 2), (1.0, 0.0), "a value of 0.0"),
        ((1, 2), (1.0, nan), "a value of nan"),
        ((-1, 2), (1.0, 2.0), "a length of -1"),
    ],
)
def test_what_has_no_law(lengths, values, message):
    with pytest.raises(UserError, match=message):
        fit_power_law(lengths, values)


def test_laws_of_rows():
    rows = [
        make_row("dense", T, flops=T**2, peak=10 * T, seconds=T / 7, measured=(T**1.5, 5 * T**2))
        for T in reversed(LENGTHS)
    ]
    rows.append(make_row("dense", 512, flops=10**9, recompute=True))
    laws = power_laws(rows)
    assert [(law.quantity, law.measured) for law in laws] == [
        ("useful_flops", False),
        ("peak_bytes", False),
        ("peak_bytes", True),
        ("seconds", False),
        ("seconds", True),
    ]
    for law, exponent, coefficient in zip(
        laws, (2, 1, 2, 1, 1.5), (1, 10, 5, 1 / 7, 1), strict=True
    ):
        assert law.exponent == pytest.approx(exponent)
        assert law.coefficient == pytest.approx(coefficient)
        assert law.lengths == (4096, 8192, 16_384)
        assert (law.label, law.work, law.recompute) == ("dense", "train", False)
        assert law.low <= law.exponent <= law.high


def test_lengths_of_laws():
    def lengths_of(*lengths):
        rows = [make_row("dense", T, flops=T**2) for T in lengths]
        return only(power_laws(rows), quantity="useful_flops").lengths

    assert lengths_of(*(2**n for n in range(8, 20))) == tuple(2**n for n in range(12, 20))
    assert lengths_of(512, 1024, 2048, 4096, 8192) == (2048, 4096, 8192)
    assert lengths_of(64, 128, 256, 512) == (128, 256, 512)
    assert lengths_of(64, 128) == (64, 128)


def test_measured_laws_need_three_measurements_that_worked():
    rows = [make_row("dense", T, measured=(1.0 * T, T)) for T in LENGTHS[:3]]
    assert [law.quantity for law in power_laws(rows) if law.measured] == ["peak_bytes", "seconds"]
    failed = replace(rows[0].measurement, failure="out of memory")
    rows[0] = replace(rows[0], measurement=failed)
    assert not [law for law in power_laws(rows) if law.measured]
    rows = [make_row("dense", T, measured=(1.0 * T, None)) for T in LENGTHS]
    rows[0] = replace(rows[0], measurement=replace(rows[0].measurement, seconds=()))
    (law,) = [law for law in power_laws(rows) if law.measured]
    assert law.quantity == "seconds"


def find(rows, quantity="seconds", label="local:8"):
    found = only(crossovers(rows, power_laws(rows)), quantity=quantity, label=label)
    return found.length, found.how


def two_patterns(dense, sparse, lengths=LENGTHS, **more):
    """Measured seconds of both patterns."""
    for T in lengths:
        yield make_row("dense", T, measured=(dense(T), None), **more)
        yield make_row("local:8", T, measured=(sparse(T), None), **more)


def test_a_crossing_between_measured_lengths():
    """Power laws are straight in logarithms: they cross where they are equal, at T = 5,000."""
    rows = list(two_patterns(lambda T: T**2 / 5000, lambda T: T))
    assert find(rows) == (5000, "measured")
    rows = list(two_patterns(lambda T: T**2 / 4096, lambda T: T))
    assert find(rows) == (4097, "measured")  # at 4,096 they cost the same


def test_the_last_crossing_counts():
    costs = dict(zip(LENGTHS, (0.5, 3, 0.5, 2, 0.25), strict=True))
    rows = list(two_patterns(lambda T: 1.0, costs.get))
    length, how = find(rows)
    assert how == "measured"
    assert length == int(8192 * 2 ** (1 / 3)) + 1  # a third of the way from 2 to 1/4


def test_a_pattern_that_wins_at_once():
    assert find(list(two_patterns(lambda T: T, lambda T: T / 2))) == (1024, "below")


def test_a_crossing_beyond_all_lengths():
    rows = list(two_patterns(lambda T: T**2 / 100_000, lambda T: T))
    length, how = find(rows)
    assert how == "extrapolated"
    assert length == pytest.approx(100_000, rel=1e-3)


def test_no_crossing():
    assert find(list(two_patterns(lambda T: T, lambda T: 2 * T))) == (None, "never")
    assert find(list(two_patterns(lambda T: T, lambda T: T))) == (None, "never")
    assert find(list(two_patterns(lambda T: T, lambda T: T**2))) == (None, "never")
    # By slopes that differ by noise alone, and far beyond any sequence.
    assert find(list(two_patterns(lambda T: T**1.01, lambda T: 2 * T))) == (None, "never")
    assert find(list(two_patterns(lambda T: T**1.1, lambda T: 9 * T))) == (None, "never")


def test_an_extrapolation_goes_on_from_the_longest_length():
    """Laws that bend cross where they should not; the crossing is beyond all that is known."""
    rows = list(two_patterns(lambda T: T**2, lambda T: T**1.5 * 1000 if T < 9000 else T**2 + 1))
    length, how = find(rows)
    assert how == "extrapolated" and length > LENGTHS[-1]


def test_predictions_where_nothing_was_measured():
    rows = [make_row("dense", T, flops=T**2, seconds=T**2 / 5000, peak=1) for T in LENGTHS]
    rows += [make_row("local:8", T, flops=3000 * T, seconds=T, peak=2) for T in LENGTHS]
    assert find(rows, "useful_flops") == (3000, "counted")
    assert find(rows, "seconds") == (5000, "predicted")
    assert find(rows, "peak_bytes") == (None, "never")


def test_slopes_are_predicted_where_measurements_are_few():
    rows = list(two_patterns(lambda T: T**2 / 4e4, lambda T: T, LENGTHS[:1]))
    rows += [make_row("dense", T, seconds=T**2 / 4e4) for T in LENGTHS[1:]]
    rows += [make_row("local:8", T, seconds=T) for T in LENGTHS[1:]]
    length, how = find(rows)
    assert how == "extrapolated"
    assert length == pytest.approx(40_000, rel=1e-3)


def test_only_what_stands_side_by_side_is_compared():
    rows = [make_row("dense", 1024), make_row("local:8", 2048), make_row("local:7", 1024)]
    rows.append(make_row("local:9", 1024, recompute=True))
    found = crossovers(rows, ())
    assert {(x.label, x.quantity) for x in found} == {
        ("local:7", "useful_flops"),
        ("local:7", "peak_bytes"),
    }
    assert {x.how for x in found} == {"never"}


@given(budget=st.integers(0, 10**9), window=st.integers(1, 3000))
def test_reach_of_a_pattern(budget, window):
    head = parse_pattern(f"local:{window}").at(0, 0, 1)
    length = reach(head.count_pairs, budget, most=2**20)
    assert length == 0 or head.count_pairs(length) <= budget
    assert length == 2**20 or head.count_pairs(length + 1) > budget


def test_infinite_intervals_are_kept_in_laws():
    rows = [make_row("dense", T, flops=T**2) for T in (1024, 4096)]
    law = only(power_laws(rows), quantity="useful_flops")
    assert law.exponent == pytest.approx(2)
    assert isinf(law.low) and isinf(law.high)
