"""The Triton engine: its plan; its kernels, interpreted and on a GPU; that they compile."""

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_tx.attention import self_check
from sparse_tx.attention.triton import why_not
from sparse_tx.attention.triton.plan import Outside, plan
from sparse_tx.patterns import parse_layer
from tests.helpers import HEADS, ODD_LENGTHS, paper_mask

HERE = Path(__file__).parent
LAYERS = (
    "summary:6:2+local:3/block:9+strided:6",
    "fixed:12:3/dense/local:5/strided:4",
    "summary:9:2+strided:4+strided:6/strided:1000+strided:3",
)


def pairs_of(sweep, T):
    """How often each head's pairs are computed by a sweep, by the definitions of its tables."""
    counts = {}
    i, j = torch.arange(T)[:, None], torch.arange(T)[None, :]
    for head, bounds, lists in sweep.heads.tolist():
        start, after = sweep.start[bounds], sweep.after[bounds]
        outside = j < start[:, None]
        assert torch.equal(outside, i >= after[None, :])
        found = torch.zeros(T, T, dtype=torch.int)
        if sweep.inside:
            found += ~outside & (j <= i)
        if sweep.outside == Outside.LISTED:
            below = sweep.listed_below[lists]
            listed = torch.zeros(T, dtype=torch.bool)
            listed[sweep.listed[lists, : below[-1]].long()] = True
            assert torch.equal(below[1:], listed.cumsum(0))
            found += outside & listed
        if sweep.outside == Outside.COLUMN:
            column = outside & ((i - j) % sweep.spacing == 0)
            if sweep.taken:
                column &= sweep.listed_below[lists].diff() == 0
            for stride in [] if sweep.earlier is None else sweep.earlier.tolist():
                column &= (i - j) % stride != 0
            found += column
        counts[head] = found
    return counts


@pytest.mark.parametrize("T", ODD_LENGTHS)
@pytest.mark.parametrize("notation", [*HEADS, *LAYERS])
def test_every_pair_is_planned_once(notation, T):
    n_head = 4
    heads = parse_layer(notation).heads(n_head)
    total = [torch.zeros(T, T, dtype=torch.int) for _ in heads]
    started = set()
    for sweep in plan(heads, T, torch.device("cpu")):
        for head, counts in pairs_of(sweep, T).items():
            total[head] += counts
            assert sweep.merges == (head in started)
            started.add(head)
    groups = notation.split("/")
    for head, counts in enumerate(total):
        expected = paper_mask(groups[head * len(groups) // n_head], T, head)
        assert np.array_equal(counts.numpy(), expected)


def test_the_first_sweep_of_every_head_writes_its_rows():
    sweeps = plan(parse_layer("local:5/strided:4").heads(4), 100, torch.device("cpu"))
    assert [sweep.merges for sweep in sweeps] == [False, False]


def test_the_self_check_has_every_kind_of_sweep():
    layer = parse_layer(self_check._LAYER)
    T = self_check._T
    kinds = set()
    for sweep in plan(layer.heads(len(layer.groups)), T, torch.device("cpu")):
        assert all(counts.any() for counts in pairs_of(sweep, T).values())
        kinds.add((sweep.inside, sweep.outside, sweep.taken, sweep.earlier is not None))
    assert kinds == {
        (True, Outside.NONE, False, False),
        (True, Outside.LISTED, False, False),
        (False, Outside.LISTED, False, False),
        (False, Outside.COLUMN, False, False),
        (False, Outside.COLUMN, True, False),
        (False, Outside.COLUMN, False, True),
    }


def test_it_needs_a_gpu():
    if find_spec("triton") is None:
        expected = "not installed"
    else:
        expected = "GPU"
    heads = parse_layer("local:4").heads(1)
    assert expected in why_not(torch.device("cpu"), torch.float32, 64, 64, heads)


def in_its_own_process(*command, **environment):
    """Run Python with other Triton settings, which hold for a whole process."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=HERE.parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


def numbers(package: str) -> tuple[int, ...]:
    return tuple(int(n) for n in version(package).split(".")[:2])


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@needs_triton
def test_short_sequences_are_not_timed_and_small_gpus_have_a_shape():
    from sparse_tx.attention.triton import tuning

    def shapes(kernel, dtype, T, span):
        arguments = {"q": torch.empty(1, dtype=dtype), "T": T, "spacing": 1, "span": span}
        return kernel.early_config_prune(None, arguments)

    for notation, T, tuned in (("local:128", 1023, False), ("local:128", 1024, True)):
        (sweep,) = plan(parse_layer(notation).heads(1), T, torch.device("cpu"))
        for kernel in (tuning.forward, tuning.query_gradient, tuning.key_gradients):
            for dtype in (torch.bfloat16, torch.float32):
                assert (len(shapes(kernel, dtype, T, sweep.span)) > 1) == tuned
                # Without stages to fill in advance, or with few rows, 99 KiB of memory suffice.
                (small,) = shapes(kernel, dtype, T, 0)
                blocks = small.kwargs["BLOCK_M"] * small.kwargs["BLOCK_N"]
                assert blocks <= 2048 and (dtype != torch.float32 or small.num_stages == 1)


@needs_triton
def test_the_kernels_in_the_interpreter():
    if numbers("triton") < (3, 7) and numbers("numpy") >= (2, 4):
        pytest.skip("the interpreter of triton before 3.7 fails with numpy 2.4 and above")
    # Its NumPy warns of what floating-point hardware does in silence, such as inf - inf.
    quiet = ("-W", "ignore::RuntimeWarning", "-p", "no:cacheprovider", "-x")
    in_its_own_process("-m", "pytest", *quiet, HERE / "triton_cases.py", TRITON_INTERPRET="1")


@needs_triton
def test_the_kernels_compile_without_a_gpu(tmp_path):
    in_its_own_process("-m", "tests.attention.triton_compiles", TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnAGpu:
    def test_the_kernels(self):
        in_its_own_process("-m", "pytest", "-p", "no:cacheprovider", HERE / "triton_cases.py")

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    @pytest.mark.parametrize("D", [64, 80, 128])
    @pytest.mark.parametrize(
        "notation", ["local:130", "strided:16", "fixed:128:32", "local:100+strided:30/dense"]
    )
    def test_sizes_of_a_model(self, notation, D, dtype):
        from tests.attention.triton_cases import check, make_inputs

        check(notation, *make_inputs(2, 4, 1031, D, D, dtype))

    def test_offsets_past_32_bits(self):
        """The last rows of a tensor of 2^32 elements, against the same rows by themselves."""
        from sparse_tx.attention.triton import attend

        H, D, window = 8, 128, 256
        T = 2**32 // (H * D)
        heads = parse_layer(f"local:{window}").heads(H)
        x = torch.randn(1, T, H, D, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
        x.requires_grad_()
        out = attend(x, x, x, heads, D**-0.5)
        out[:, :, -window:].sum().backward()
        end = x.detach()[:, :, -2 * window :].clone().requires_grad_()
        end_out = attend(end, end, end, heads, D**-0.5)
        end_out[:, :, -window:].sum().backward()
        rows = slice(-window, None)
        torch.testing.assert_close(out[:, :, rows], end_out[:, :, rows], rtol=0, atol=2e-2)
        torch.testing.assert_close(
            x.grad[:, :, -2 * window :], end.grad, rtol=2e-2, atol=2e-2 * end.grad.abs().max()
        )
        column = attend(x, x, x, parse_layer(f"strided:{T // 64}").heads(H), D**-0.5)
        assert column.isfinite().all()
