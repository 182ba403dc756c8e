"""Which parts of a model a piece of work spends its time in.

At every moment one part is being timed. Modules say when their forward pass begins and ends. The
backward pass has no modules; it goes through tensors, and on reaching the output of a module, which
is where a hook on that tensor is called, it enters that module's part. What belongs to no module,
such as residual sums, is ``other``. So the parts sum to the whole, and none is counted twice.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from sparse_tx.model import GPT, long_blocks
from sparse_tx.model.block import FeedForward
from sparse_tx.profiler.machine import clock
from sparse_tx.profiler.works import Doable

_BACKWARD, _RECOMPUTE = "backward", "recompute"


def measure_parts(work: Doable, device: str) -> dict[str, float]:
    """Do a work once with clocks in it; seconds of each part of it.

    Parts are ``attention`` (without its two projections), ``qkv``, ``output``, ``feed_forward``,
    ``norms``, ``token_embedding`` (positions included), ``head_and_loss`` and ``other``, each with
    the pass that it belongs to: ``.forward``, ``.backward``, or ``.recompute`` for what the
    backward pass computes again. ``optimiser`` has one pass only. Of the work ``attention``, times
    are the mean over the layers of its pattern.

    Where blocks take some heads at a time, as with ``head_chunk`` and in prefill, the projection to
    queries, keys and values is ``other``, and so is all of attention's backward pass but what it
    computes again. Of decoding, attention is ``other``; so is all of it where a native kernel takes
    the whole step.
    """
    clocks = _Clocks(device)
    if work.model is None:
        work.run(clocks.enter_attention)
        clocks.stop()
        return {part: seconds / work.times for part, seconds in clocks.seconds.items()}
    with _clocks_in(work.model, clocks):
        work.run(clocks.enter)
        clocks.stop()
    return dict(clocks.seconds)


class _Clocks:
    """Seconds of each part, of which one is open at a time."""

    def __init__(self, device: str):
        self.seconds: dict[str, float] = defaultdict(float)
        self.phase = ""
        self._device, self._open, self._since = device, "", 0.0

    def switch(self, part: str) -> str:
        """Time ``part`` from now on; returns the part that was timed until now."""
        now = clock(self._device)
        if self._open:
            self.seconds[self._open] += now - self._since
        before, self._open, self._since = self._open, part, now
        return before

    def stop(self) -> None:
        self.switch("")

    def enter_attention(self, phase: str) -> None:
        """A phase begins of a work that is attention alone."""
        self.switch(f"attention.{phase}")

    def enter(self, phase: str) -> None:
        """A phase of a model's work begins."""
        self.phase = phase
        # The backward pass begins where the forward pass ends.
        first = {"forward": "other.forward", _BACKWARD: f"head_and_loss.{_BACKWARD}"}
        self.switch(first.get(phase, phase))


@contextmanager
def _clocks_in(model: GPT, clocks: _Clocks) -> Iterator[None]:
    """Let the modules of a model tell ``clocks`` of themselves for a while."""
    hooks = _Hooks(clocks)
    embeddings = [model.token_embedding, *model.earlier_embeddings]
    embeddings += [part for part in (model.lookups, model.positions) if part is not None]
    for embedding in embeddings:
        hooks.on(embedding, "token_embedding")
    for block in model.blocks:
        hooks.on(block, "other", output_is_marked=False)
        for norm in (block.attention_norm, block.feed_forward_norm):
            hooks.on(norm, "norms", before="other")
        hooks.on(block.attention, "attention", output_is_marked=False)
        hooks.on(block.attention.to_qkv, "qkv")
        hooks.on(block.attention.to_out, "output", before="attention")
        hooks.on(block.feed_forward, "feed_forward")
        hooks.on_pieces(block.feed_forward, "feed_forward")
    hooks.on(model.final_norm, "norms", before="other", after="head_and_loss")
    # Blocks that take some heads at a time call attention as a function, by the name there.
    plain = long_blocks.sparse_attention
    long_blocks.sparse_attention = hooks.around(plain, "attention")
    try:
        yield
    finally:
        long_blocks.sparse_attention = plain
        hooks.remove()


class _Hooks:
    """Hooks on modules, each of which belongs to a part."""

    def __init__(self, clocks: _Clocks):
        self._clocks = clocks
        self._handles = []
        self._parts_around: list[str] = []
        self._last_output: Tensor | None = None
        self._in_pieces: list[FeedForward] = []

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        for module in self._in_pieces:
            del module.apply_to

    def on(
        self,
        module: nn.Module,
        part: str,
        *,
        before: str | None = None,
        after: str | None = None,
        output_is_marked: bool = True,
    ) -> None:
        """Count the passes of ``module`` as those of ``part``.

        Args:
            module: whose calls do not overlap with others of the part.
            part: without its pass.
            before: to which part what comes before the module belongs in the backward pass, if
                that is not the output of another module.
            after: to which part what comes after the module belongs, if not to what it is within.
            output_is_marked: whether the backward pass enters the part at the module's output.
        """

        def begin(_, inputs: tuple) -> None:
            if before and inputs[0] is not self._last_output:
                self._mark(inputs[0], before)
            self._parts_around.append(self._clocks.switch(f"{part}.{self._pass()}"))

        def end(_, inputs: tuple, output: Tensor | None) -> None:
            around = self._parts_around.pop()
            self._clocks.switch(f"{after}.{self._pass()}" if after else around)
            if output_is_marked and output is not None:
                self._mark(output, part)
                self._last_output = output

        self._handles.append(module.register_forward_pre_hook(begin))
        # Recomputation stops by an exception as soon as it has all that it needs.
        self._handles.append(module.register_forward_hook(end, always_call=True))

    def around(self, function: Callable, part: str) -> Callable:
        """The same function, whose calls are counted as those of ``part``."""

        def clocked(*args, **options):
            before = self._clocks.switch(f"{part}.{self._pass()}")
            try:
                return function(*args, **options)
            finally:
                self._clocks.switch(before)

        return clocked

    def on_pieces(self, module: FeedForward, part: str) -> None:
        """Count the pieces that ``module`` has computed again, uncalled, as those of ``part``."""
        apply_to = module.apply_to

        def timed(x: Tensor) -> Tensor:
            if self._pass() != _RECOMPUTE:
                return apply_to(x)
            around = self._clocks.switch(f"{part}.{_RECOMPUTE}")
            # Recomputation stops by an exception as soon as it has all that it needs.
            try:
                return apply_to(x)
            finally:
                self._clocks.switch(around)

        module.apply_to = timed
        self._in_pieces.append(module)

    def _pass(self) -> str:
        """The pass that a module is called in: modules called in the backward pass recompute."""
        return _RECOMPUTE if self._clocks.phase == _BACKWARD else self._clocks.phase

    def _mark(self, tensor: Tensor, part: str) -> None:
        """Have the backward pass enter ``part`` when it comes by ``tensor``."""
        if self._clocks.phase != _BACKWARD and tensor.requires_grad:
            tensor.register_hook(_entering(self._clocks, f"{part}.{_BACKWARD}"))


def _entering(clocks: _Clocks, part: str) -> Callable[[Tensor], None]:
    def enter(_: Tensor) -> None:
        clocks.switch(part)

    return enter
