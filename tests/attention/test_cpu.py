"""What the native kernel promises beyond the chain of oracles in test_engines."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sparse_tx import sparse_attention
from sparse_tx.attention.cpu import operator, sweeps
from sparse_tx.errors import UserError
from sparse_tx.patterns import Dense, Local, parse_pattern
from tests.attention.test_engines import largest_error, make_inputs, run
from tests.helpers import HEADS, paper_mask

UNIONS = (
    "local:7",
    "dense",
    "local:100/strided:16",
    "fixed:64:8",
    "local:64+strided:8",
    "summary:50:3/dense",
)


@pytest.mark.parametrize("D", [1, 7, 16, 31, 32, 64, 96, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_width(D, dtype):
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-12}[dtype]
    for pattern in ("local:40+strided:9", "fixed:32:4"):
        inputs = make_inputs(B=1, H=2, T=210, D=D, D_v=max(1, D - 3), dtype=dtype)
        expected = run("reference", pattern, *(x.double() for x in inputs))
        assert largest_error(run("cpu", pattern, *inputs), expected) < tolerance


@pytest.mark.parametrize("pattern", UNIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_number_of_threads_changes_no_bit(pattern, dtype):
    inputs = make_inputs(B=2, H=2, T=977, D=16, D_v=16, dtype=dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(run("cpu", pattern, *inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_without_the_process_pool_threads_are_our_own(monkeypatch):
    inputs = make_inputs(B=1, H=2, T=500, D=8, D_v=8)
    expected = run("cpu", "fixed:64:8", *inputs)
    monkeypatch.setattr(operator, "thread_pool", lambda: None)
    found = run("cpu", "fixed:64:8", *inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("pattern", HEADS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_with_those_who_may_see_it(pattern, value):
    T, bad = 230, 101
    allowed = torch.from_numpy(paper_mask(pattern, T))
    inputs = make_inputs(B=1, H=1, T=T, D=5, D_v=5)
    expected = run("cpu", pattern, *inputs)
    for n in range(4):
        broken = [x.clone() for x in inputs]
        broken[n][0, 0, bad] = value
        out, dq, dk, dv = (x[0, 0] for x in run("cpu", pattern, *broken))
        # Queries that read the bad key, or are themselves bad; and the keys that those read.
        sees = allowed[:, bad] if n in (1, 2) else torch.arange(T) == bad
        reached = allowed[sees].any(0)
        for found, clean, rows in (
            (out, expected[0], sees),
            (dq, expected[1], sees),
            (dk, expected[2], reached),
            (dv, expected[3], reached),
        ):
            assert ((found[~rows] - clean[0, 0][~rows]).abs() < 1e-12).all()
        if reached.any() and n != 3 and not (n < 2 and abs(value) == float("inf")):
            assert not out[sees].isfinite().all()


def test_what_a_thread_has_packed_before_changes_no_bit():
    # With two threads, each has the second tile of a column first, whose keys include the bad ones.
    inputs = make_inputs(B=1, H=1, T=384, D=128, D_v=128, dtype=torch.float32)
    inputs[1][0, 0, 188:190] = float("nan")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run("cpu", "strided:2+local:32", *inputs)
        torch.set_num_threads(2)
        for _ in range(40):
            found = run("cpu", "strided:2+local:32", *inputs)
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    finally:
        torch.set_num_threads(before)


def finite_rows(results):
    return [x.isfinite().all(-1) for x in results]


def test_overflow_stays_with_those_who_may_see_it():
    inputs = make_inputs(B=1, H=1, T=230, D=8, D_v=8, dtype=torch.float32)
    q, k, v, d_out = (x.clone() for x in inputs)
    v[0, 0, 60] = d_out[0, 0, 88] = 1e30  # a query that does not read this key
    assert all(x.all() for x in finite_rows(run("cpu", "local:20", q, k, v, d_out)))
    # The first is infinite times the factor of scores in units of log 2, the second times its key.
    for query, key in ((3.4e38, 1.0), (1e30, 1e30)):
        q[0, 0, 60], k[0, 0, 59] = query, key
        found = finite_rows(run("cpu", "local:20", q, k, v, inputs[3]))
        expected = finite_rows(run("reference", "local:20", q, k, v, inputs[3]))
        assert not expected[0][0, 0, 60]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_query_that_reads_nan_makes_the_gradients_of_all_its_keys_nan():
    inputs = make_inputs(B=1, H=1, T=100, D=4, D_v=4)
    inputs[1][0, 0, 50] = float("nan")
    *_, dk, dv = run("cpu", "local:9", *inputs)
    reached = torch.arange(100).sub(50).abs() <= 8
    for grad in (dk, dv):
        assert torch.equal(grad[0, 0].isnan().all(-1), reached)


@pytest.fixture
def poisoned():
    """Memory that torch hands out uninitialised is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("pattern", [*HEADS, "summary:10:2+strided:4", "summary:9:9+strided:300"])
@pytest.mark.parametrize("T", [1, 97, 230])
def test_nothing_is_read_before_it_is_written(pattern, T):
    inputs = make_inputs(B=2, H=2, T=T, D=5, D_v=6)
    found, expected = run("cpu", pattern, *inputs), run("reference", pattern, *inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("pattern", ["dense", "local:130", "fixed:150:7", "local:9+strided:60"])
def test_chunks_of_queries_spill_gradients_to_earlier_keys(pattern, monkeypatch):
    monkeypatch.setattr(sweeps, "_LARGEST_SPILL", 100)
    sweeps.phases.cache_clear()
    inputs = make_inputs(B=2, H=1, T=701, D=5, D_v=6)
    found, expected = run("cpu", pattern, *inputs), run("reference", pattern, *inputs)
    heads = parse_pattern(pattern).layers[0].heads(1)
    assert sweeps.phases(heads, 2, 701)[0].sweeps[0].n_chunks > 8
    sweeps.phases.cache_clear()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_single_head_shares_its_backward_pass_out():
    inputs = make_inputs(B=1, H=1, T=977, D=8, D_v=8)
    (phase,) = sweeps.phases((Dense(),), 1, 977)
    assert phase.sweeps[0].n_chunks == 4
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run("cpu", "dense", *inputs)
        torch.set_num_threads(3)
        three = run("cpu", "dense", *inputs)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
    torch.testing.assert_close(one, run("reference", "dense", *inputs), rtol=0, atol=1e-12)


def lay_out(layout: str, x: torch.Tensor) -> torch.Tensor:
    """A tensor of this shape, of other numbers where they share memory."""
    B, H, T, D = x.shape
    match layout:
        case "transposed":
            return x.mT.contiguous().mT
        case "expanded":
            return x[:, :1].expand(B, H, T, D)
        case "sliced":
            return x.repeat(1, 1, 2, 3)[:, :, ::2, D : 2 * D]
        case "every other":
            return x.repeat_interleave(2, dim=3)[..., ::2]
        case "windows":  # neighbouring rows share all but one number
            return x.flatten(2)[..., : T + D - 1].unfold(2, D, 1)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("layout", ["transposed", "expanded", "sliced", "every other", "windows"])
@pytest.mark.parametrize("T", [7, 130])
def test_any_strides(layout, T):
    # Rows both longer and shorter than T: where strides are equal, torch goes by sizes.
    inputs = [lay_out(layout, x) for x in make_inputs(B=2, H=3, T=T, D=17, D_v=9)]
    q, k, v = (x.detach().requires_grad_() for x in inputs[:3])
    pattern = "local:5/strided:3/fixed:8:2"
    out = sparse_attention(q, k, v, pattern, engine="cpu")
    found = [out.detach(), *torch.autograd.grad(out, (q, k, v), inputs[3])]
    torch.testing.assert_close(found, run("reference", pattern, *inputs), rtol=0, atol=1e-12)
    torch.library.opcheck(operator._attention, (q, k, v, pattern, 0.5))


def test_errors_in_float32_are_no_larger_than_torch_s_own():
    inputs = make_inputs(B=1, H=4, T=800, D=64, D_v=64, dtype=torch.float32)
    expected = run("reference", "dense", *(x.double() for x in inputs))
    q, k, v = (x.clone().requires_grad_() for x in inputs[:3])
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    out.backward(inputs[3])
    of_torch = [out.detach(), q.grad, k.grad, v.grad]
    found = run("cpu", "dense", *inputs)
    for mine, other, exact in zip(found, of_torch, expected, strict=True):
        assert largest_error([mine], [exact]) <= 2 * largest_error([other], [exact])


@pytest.mark.parametrize("pattern", ["local:9", "strided:4+local:3", "fixed:8:2"])
def test_opcheck(pattern):
    q, k, v, _ = make_inputs(B=1, H=2, T=33, D=4, D_v=4)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    torch.library.opcheck(operator._attention, (q, k, v, f"{pattern}/{pattern}", 0.5))


def test_gradients_by_finite_differences():
    for pattern in ("local:3+strided:4", "fixed:4:1", "summary:5:2"):
        q, k, v, _ = make_inputs(B=1, H=2, T=11, D=2, D_v=3)
        inputs = tuple(x.requires_grad_() for x in (q, k, v))
        assert torch.autograd.gradcheck(
            lambda q, k, v, pattern=pattern: sparse_attention(q, k, v, pattern, engine="cpu"),
            inputs,
        )


@dataclass(frozen=True)
class EvenDistances(Local):
    def allows(self, q, k):
        return super().allows(q, k) & ((q - k) % 2 == 0)


def test_a_pattern_that_it_does_not_know():
    q, k, v, _ = make_inputs(B=1, H=1, T=9, D=4, D_v=4)
    with pytest.raises(UserError, match="no kernel for the pattern"):
        sparse_attention(q, k, v, EvenDistances(6), engine="cpu")


def test_auto_without_the_kernel_says_why(monkeypatch):
    from sparse_tx.attention import cpu, resolve_engine

    monkeypatch.setattr(cpu, "why_no_kernel", lambda: "no compiler")
    inputs = dict(device=torch.device("cpu"), dtype=torch.float32, D=8, D_v=8, heads=(Local(4),))
    assert resolve_engine("auto", **inputs) == ("views", "cpu: no compiler")
    with pytest.raises(UserError, match=r"'cpu' cannot run here: no compiler; .*engine='views'"):
        resolve_engine("cpu", **inputs)


SANITIZED = """
import torch
from sparse_tx import sparse_attention
for T in (1, 5, 95, 96, 97, 230):
    for D, D_v in ((3, 5), (16, 16)):
        for dtype in (torch.float32, torch.float64):
            for pattern in ("dense", "local:7", "strided:7", "fixed:12:3/summary:9:2",
                            "block:30+strided:4+summary:30:2+local:3", "strided:4+strided:6"):
                x = [torch.randn(2, 2, T, d, dtype=dtype, requires_grad=True) for d in (D, D, D_v)]
                sparse_attention(*x, pattern, engine="cpu").sum().backward()
                x[1].data[0, 0, T // 2] = float("nan")
                sparse_attention(*x, pattern, engine="cpu").sum().backward()
print("clean")
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ and its sanitizers")
def test_sanitizers_find_nothing(tmp_path):
    libraries = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(library).is_absolute() for library in libraries):
        pytest.skip("g++ has no sanitizers")
    environment = os.environ | {
        "CXX": "g++",
        "CXXFLAGS": "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined",
        "LD_PRELOAD": " ".join(libraries),
        # Python and torch keep what they allocate until the end.
        "ASAN_OPTIONS": "detect_leaks=0",
        "XDG_CACHE_HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", SANITIZED], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "clean\n", done.stderr[-3000:]
