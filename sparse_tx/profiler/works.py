"""What is measured: each ``Work`` as an object that does it once, as often as it is asked to.

Weights, tokens, queries, keys and values are random, from a fixed seed.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from sparse_tx.attention import resolve_engine, sparse_attention
from sparse_tx.errors import UserError
from sparse_tx.generation import make_decoder
from sparse_tx.generation.cached import IncrementalDecoder
from sparse_tx.model import GPT
from sparse_tx.model.positions import rotate
from sparse_tx.model.precision import autocast, dtype_of
from sparse_tx.profiler.records import Setting, Work
from sparse_tx.training.averaging import WeightAverage
from sparse_tx.training.optimiser import clip_gradients, make_optimisers

# What a small version reads: enough for every engine to start its threads.
_SMALL_LEN = 300
# Steps of generation before the one that is measured (see ``DecodeWork``).
_STEPS_BEFORE = 8

Enter = Callable[[str], None]
"""Is called when a phase of the work begins: ``forward``, ``backward`` or ``optimiser``."""


def _ignore(phase: str) -> None:
    pass


class Doable(Protocol):
    """A work, ready to be done any number of times.

    Attributes:
        engine: the attention engine that runs.
        decoder: the class of the decoder that generates; empty where nothing is generated.
        model: whose parts take the time; None where there is no model.
        times: how often a run does what is measured.
    """

    engine: str
    decoder: str
    model: GPT | None
    times: int

    def prepare(self) -> None:
        """Do what each time needs before it, and what is not part of the work."""

    def run(self, enter: Enter = _ignore) -> None:
        """Do the work once, telling ``enter`` of each phase as it begins."""


def make_work(setting: Setting) -> Doable:
    """Make what ``setting`` asks for, on its device.

    Raises:
        UserError: the setting's engine cannot run there, or there is no such device.
    """
    if setting.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, and torch sees no GPU here; measure on the device cpu")
    torch.manual_seed(0)
    return _WORKS[setting.work](setting)


def small(setting: Setting) -> Setting:
    """The same work on a model of the same widths with few tokens and no more layers than needed.

    Done first, it has libraries loaded, kernels compiled and threads started.
    """
    model = setting.model
    n_layer = min(model.n_layer, len(model.stack.layers))
    model = replace(model, n_layer=n_layer, seq_len=min(model.seq_len, _SMALL_LEN))
    return replace(setting, model=model, training=replace(setting.training, batch_size=1))


class AttentionWork:
    """Forward and backward of ``sparse_attention``, for each layer of a round of the pattern.

    Queries, keys and values ``(B, H, T, D)`` lie in memory as the model has them: cut out of one
    projection ``(B, T, 2 n_qk + C)``, or the former two beside one another once norms or rotations
    have gone over them. They and the gradient of the output are made once.
    """

    model, decoder = None, ""

    def __init__(self, setting: Setting):
        config, self.layers = setting.model, setting.model.stack.layers
        B, T, H = setting.training.batch_size, config.seq_len, config.n_head
        qk_width, C = config.qk_width, config.n_embd
        dtype = dtype_of(setting.training.precision)
        place = dict(device=setting.device, dtype=dtype)
        qk, v = torch.randn(B, T, 2 * qk_width + C, **place).split((2 * qk_width, C), dim=-1)
        if config.qk_norm or config.rotates:
            qk = qk.clone(memory_format=torch.contiguous_format)
        q, k = qk.view(B, T, 2 * H, -1).chunk(2, dim=2)  # (B, T, H, D) each
        self.inputs = tuple(x.transpose(1, 2).requires_grad_() for x in (q, k, v.view(B, T, H, -1)))
        self.d_out = torch.randn(B, T, H, C // H, **place).transpose(1, 2)
        self.asked, self.times = config.engine, len(self.layers)
        self.engine, _ = resolve_engine(
            config.engine,
            device=self.d_out.device,
            dtype=dtype,
            D=qk_width // H,
            D_v=C // H,
            heads=tuple(head for layer in self.layers for head in layer.heads(H)),
        )

    def prepare(self) -> None:
        pass

    def run(self, enter: Enter = _ignore) -> None:
        for layer in self.layers:
            enter("forward")
            out = sparse_attention(*self.inputs, layer, engine=self.asked)
            enter("backward")
            torch.autograd.grad(out, self.inputs, self.d_out)


class _ModelWork:
    """A model, and a batch of random texts for it."""

    times, decoder = 1, ""

    def __init__(self, setting: Setting):
        self.device, self.recipe = torch.device(setting.device), setting.training
        self.model = GPT(setting.model).to(self.device).eval()
        if self.model.lookups is not None:
            # Zeros that nobody has written take no memory yet; a trained table is there in full.
            torch.nn.init.normal_(self.model.lookups.table, std=0.02)
        shape = (self.recipe.batch_size, setting.model.seq_len)
        self.tokens = torch.randint(0, setting.model.vocab_size, shape)  # (B, T), as loaders do
        with autocast(self.recipe.precision, self.device):
            self.engine, _ = self.model.engine()

    def prepare(self) -> None:
        pass

    def _loss(self) -> Tensor:
        with autocast(self.recipe.precision, self.device):
            tokens = self.tokens.to(self.device, non_blocking=True)
            return self.model.loss(tokens, self.tokens.to(self.device, non_blocking=True))


class ForwardWork(_ModelWork):
    """The model's loss without gradients."""

    def run(self, enter: Enter = _ignore) -> None:
        enter("forward")
        with torch.no_grad():
            self._loss().item()


class TrainWork(_ModelWork):
    """An optimiser step as the trainer takes it, without accumulation and without its loader."""

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.model.train()
        self.optimisers = make_optimisers(self.model, self.recipe)
        self.average = WeightAverage(self.model, self.recipe.ema) if self.recipe.ema else None

    def run(self, enter: Enter = _ignore) -> None:
        enter("forward")
        loss = self._loss()
        enter("backward")
        (loss / self.tokens.numel()).backward()
        loss.item()
        enter("optimiser")
        clip_gradients(self.model, self.recipe.clip)
        for optimiser in self.optimisers:
            optimiser.step()
        self.model.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.model)


class _GenerationWork(_ModelWork):
    """A model, and texts that with the start symbol are ``seq_len`` tokens."""

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.decoder = type(self._make_decoder()).__name__

    def _make_decoder(self) -> IncrementalDecoder:
        """As generation makes it, with room for texts as long as the context."""
        with autocast(self.recipe.precision, self.device):
            return make_decoder(self.model)


class PrefillWork(_GenerationWork):
    """The logits after the texts, read into a cache that is made for them."""

    def run(self, enter: Enter = _ignore) -> None:
        enter("forward")
        with autocast(self.recipe.precision, self.device):
            self._make_decoder().prefill(self.tokens[:, 1:]).cpu()


class DecodeWork(_GenerationWork):
    """The step that appends the last token of the texts, each time to the same ones.

    Reading them would take far longer than the step, and so the cache holds random numbers, which
    take as long to attend to. A step writes its slots before it reads them, and thus can be taken
    any number of times. Some steps before it are taken again each time too: a processor keeps what
    it has just read, and would otherwise have at hand what a step reads once in a stride.
    """

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self._decoding: IncrementalDecoder | None = None

    def prepare(self) -> None:
        before = max(0, self.tokens.shape[1] - 2)
        first = max(0, before - _STEPS_BEFORE)
        with autocast(self.recipe.precision, self.device):
            if self._decoding is None:
                self._decoding = self._begin()
            for number, text in enumerate(self.tokens[:, :first].tolist()):
                self._decoding.assume(number, text)
            for tokens in self.tokens[:, first:before].T:
                self._decoding.decode_one_token(tokens)

    def run(self, enter: Enter = _ignore) -> None:
        enter("forward")
        with autocast(self.recipe.precision, self.device):
            self._decoding.decode_one_token(self.tokens[:, -1]).cpu()

    def _begin(self) -> IncrementalDecoder:
        """A decoder whose texts are empty, and whose cache is full."""
        decoder = self._make_decoder()
        decoder.open(len(self.tokens))
        for layer in decoder.cache.layers:
            for group in layer.groups:
                group.k.normal_()
                group.v.normal_()
        config = self.model.config
        if config.rotates:  # texts that were read would have left a rotary table
            key = torch.zeros(1, 1, 1, config.qk_width // config.n_head, device=self.device)
            rotate(key, config.seq_len - 1, config.seq_len)
        return decoder


_WORKS: dict[Work, Callable[[Setting], Doable]] = {
    "attention": AttentionWork,
    "forward": ForwardWork,
    "train": TrainWork,
    "prefill": PrefillWork,
    "decode": DecodeWork,
}
