"""Windows: all of them, once an epoch, shifted by one, and resumed exactly."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparse_tx.data.loader import StagedLoader, WindowLoader
from sparse_tx.errors import UserError

START = 999


def loader(n_tokens=101, seq_len=7, batch_size=1, seed=3) -> WindowLoader:
    """A loader of the tokens 0, 1, 2, ..., which are their own positions."""
    return WindowLoader(
        np.arange(n_tokens, dtype=np.uint16),
        seq_len=seq_len,
        batch_size=batch_size,
        seed=seed,
        start_token=START,
    )


def windows(data: WindowLoader, count: int) -> list[int]:
    """The positions at which the next ``count`` windows begin."""
    return [int(data.next_batch()[1][0, 0]) for _ in range(count)]


def test_batch_shapes_types_and_shift():
    data = loader(batch_size=5)
    for _ in range(13):
        inputs, targets = data.next_batch()
        for part in (inputs, targets):
            assert part.shape == (5, 7) and part.dtype == torch.int64 and part.is_contiguous()
        assert torch.equal(targets, targets[:, :1] + torch.arange(7))
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert (inputs[:, 0] == START).all()


def test_a_window_by_hand():
    inputs, targets = loader(n_tokens=7).next_batch()
    assert inputs.tolist() == [[START, 0, 1, 2, 3, 4, 5]]
    assert targets.tolist() == [[0, 1, 2, 3, 4, 5, 6]]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 9))
def test_every_window_exactly_once_an_epoch(n_tokens, seq_len, seed):
    if seq_len > n_tokens:
        return
    data = loader(n_tokens, seq_len, seed=seed)
    assert data.windows_per_epoch == n_tokens // seq_len
    for epoch in range(3):
        assert data.epoch == epoch
        begins = sorted(windows(data, data.windows_per_epoch))
        offset = begins[0]
        assert begins == [offset + n * seq_len for n in range(n_tokens // seq_len)]
        assert 0 <= offset <= n_tokens % seq_len


def test_a_batch_goes_on_into_the_next_epoch():
    one, five = loader(), loader(batch_size=5)
    assert one.windows_per_epoch == 14
    in_fives = [int(row[0]) for _ in range(9) for row in five.next_batch()[1]]
    assert in_fives == windows(one, 45)
    assert five.epoch == pytest.approx(45 / 14)


def test_epochs_and_seeds_differ_and_repeat():
    data = loader()
    first, second = windows(data, 14), windows(data, 14)
    assert first != second and first != sorted(first)
    assert first != windows(loader(seed=4), 14)
    assert first + second == windows(loader(), 28)


def test_no_token_is_always_left_out():
    data = loader(n_tokens=41, seq_len=11)  # 3 windows, remainder 8
    seen = set()
    for _ in range(3 * 100):
        seen.update(data.next_batch()[1][0].tolist())
    assert seen == set(range(41))


@pytest.mark.parametrize("given_out", [0, 1, 13, 14, 15, 28, 31])
def test_resumes_exactly(given_out):
    data, other = loader(), loader(batch_size=3)
    windows(data, given_out)
    state = json.loads(json.dumps(data.state_dict()))
    assert all(type(value) is int for value in state.values())
    other.load_state_dict(state)
    assert other.epoch == data.epoch
    expected = torch.cat([data.next_batch()[1] for _ in range(33)])
    assert torch.equal(torch.cat([other.next_batch()[1] for _ in range(11)]), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_tokens": 103}, "n_tokens 101 and this run has 103"),
        ({"seq_len": 5}, "seq_len 7 and this run has 5"),
        ({"seed": 11}, "seed 3 and this run has 11"),
    ],
)
def test_state_of_another_run_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        loader(**change).load_state_dict(loader().state_dict())


@pytest.mark.parametrize("change", [{"index": 15}, {"index": -1}, {"epoch": -1}])
def test_state_that_cannot_be_is_refused(change):
    with pytest.raises(UserError, match="does not exist"):
        loader().load_state_dict(loader().state_dict() | change)
    with pytest.raises(UserError, match="seed None"):
        loader().load_state_dict({})


def test_sizes_that_cannot_be():
    with pytest.raises(UserError, match=r"seq_len 103 .* 101; take a shorter"):
        loader(seq_len=103)
    for name in ("seq_len", "batch_size"):
        with pytest.raises(UserError, match=f"{name} is 0; it must be 1 or more"):
            loader(**{name: 0})
    with pytest.raises(UserError, match="seed is -1; it must be 0"):
        loader(seed=-1)


def staged(stages=((3, 0.25), (7, 0.5)), batch_size=2, seq_len=21) -> StagedLoader:
    return StagedLoader(
        np.arange(1009),
        seq_len=seq_len,
        batch_size=batch_size,
        seed=3,
        start_token=START,
        stages=stages,
    )


def test_windows_grow_and_batches_keep_their_size():
    data = staged()
    shapes = [tuple(data.next_batch(progress)[0].shape) for progress in (0.0, 0.24, 0.25, 0.5, 1.0)]
    assert shapes == [(14, 3), (14, 3), (6, 7), (2, 21), (2, 21)]


def test_without_stages_it_is_the_plain_loader():
    plain, data = loader(n_tokens=1009, seq_len=21, batch_size=2), staged(stages=())
    for _ in range(60):
        assert all(map(torch.equal, plain.next_batch(), data.next_batch(0.0)))


def test_a_state_of_a_loader_without_stages_can_be_gone_on_with():
    plain, data = loader(n_tokens=1009, seq_len=21, batch_size=2), staged(stages=())
    plain.next_batch()
    data.load_state_dict(plain.state_dict())
    assert all(map(torch.equal, plain.next_batch(), data.next_batch(0.0)))


def test_all_stages_resume_where_they_were():
    data, other = staged(), staged()
    for progress in (0.0, 0.1, 0.3, 0.4, 0.7):
        data.next_batch(progress)
    other.load_state_dict(data.state_dict())
    for progress in (0.2, 0.4, 0.9):
        assert all(map(torch.equal, data.next_batch(progress), other.next_batch(progress)))


def test_a_state_of_other_stages_is_refused():
    with pytest.raises(UserError, match="length_warmup"):
        staged(stages=((3, 0.25),)).load_state_dict(staged().state_dict())


@pytest.mark.parametrize("length", [4, 22, 42])
def test_a_length_that_does_not_divide_a_batch_is_refused(length):
    with pytest.raises(UserError, match=f"windows of {length}"):
        staged(stages=((length, 0.5),))
