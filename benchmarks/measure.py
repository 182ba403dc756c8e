"""How contenders are measured: seconds of a pass, and its peak memory."""

import torch
from contenders import Attend, Contender, Problem

from sparse_tx.profiler.machine import Stopwatch
from sparse_tx.profiler.memory import (
    give_back_freed_memory,
    peak_resident_bytes,
    reset_peak,
    resident_bytes,
)
from sparse_tx.profiler.processes import Tell, run_in_fresh_process


def timed_pass(attend: Attend, inputs: tuple, device: str, *, backward: bool) -> list[float]:
    """Seconds of the forward pass and, if there is one, of the backward pass."""
    q, k, v, d_out = inputs
    with torch.set_grad_enabled(backward):
        watch = Stopwatch(device)
        out = attend(q, k, v)
        watch.mark()
        if backward:
            out.backward(d_out)
            watch.mark()
    q.grad = k.grad = v.grad = None
    return watch.laps()


def peak_bytes(contender: Contender, problem: Problem) -> int:
    """The memory that one pass takes beyond its inputs, preparation included.

    On a CPU that is the highest resident set, less what was resident before, in a process of its
    own. There malloc gives freed memory back at once, so that the figure is of what is held, not of
    what malloc keeps. On a GPU it is the allocator's peak.
    """
    if problem.device == "cuda":
        return _peak_allocated(contender, problem)
    ending = run_in_fresh_process(_tell_peak_resident, contender, problem)
    if ending.cause:
        raise MemoryError(f"no memory was left for {contender} at {problem.T:,} positions")
    return ending.told["peak"][0]


def _peak_allocated(contender: Contender, problem: Problem) -> int:
    inputs = problem.inputs()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _one_pass(contender, problem, inputs)
    return torch.cuda.max_memory_allocated() - before


def _tell_peak_resident(tell: Tell, contender: Contender, problem: Problem) -> None:
    give_back_freed_memory()
    T = problem.T if contender.compiles() else 300
    small = Problem(problem.H, T, problem.D, problem.device, problem.dtype)
    _one_pass(contender, small, small.inputs())  # libraries load and threads start
    inputs = problem.inputs()
    reset_peak()
    before = resident_bytes()
    _one_pass(contender, problem, inputs)
    tell("peak", peak_resident_bytes() - before)


def _one_pass(contender: Contender, problem: Problem, inputs: tuple) -> None:
    q, k, v, d_out = inputs
    with torch.set_grad_enabled(contender.has_backward(problem.device)):
        out = contender.prepare(problem)(q, k, v)
        if contender.has_backward(problem.device):
            out.backward(d_out)
