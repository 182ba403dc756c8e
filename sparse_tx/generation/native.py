"""The decoder with a cache as one native call a step, on a CPU (``decode.cpp``)."""

import ctypes
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sparse_tx.cache import LayerCache, Layout, layout_of
from sparse_tx.cache.layout import Columns, Everything, Residues
from sparse_tx.generation.cached import IncrementalDecoder, NextToken
from sparse_tx.model import GPT
from sparse_tx.model.growing_text import GrowingText
from sparse_tx.model.incremental import make_cache, prefill
from sparse_tx.native import Kernel, thread_pool
from sparse_tx.patterns import BlockLocal, Dense, Local

KERNEL = Kernel("decode", Path(__file__).with_name("decode.cpp"))

_ACTIVATIONS = {"gelu": 0, "relu2": 1, "swiglu": 2}
_RESTS = {type(None): 0, Columns: 1, Residues: 2, Everything: 3}
# Vectors of scores are stored whole.
_WIDEST_VECTOR = 16


class _Linear(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
    )


class _Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p))


class _Head(ctypes.Structure):
    _fields_ = (
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("k_text", ctypes.c_int64),
        ("v_text", ctypes.c_int64),
        ("ring", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("blocks", ctypes.c_void_p),
        ("n_blocks", ctypes.c_int64),
        ("rest", ctypes.c_int64),
        ("below", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("row", ctypes.c_int64),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        ("attention_norm", _Norm),
        ("feed_forward_norm", _Norm),
        ("to_qkv", _Linear),
        ("to_out", _Linear),
        ("expand", _Linear),
        ("contract", _Linear),
        ("heads", ctypes.c_void_p),
    )


class _Decoder(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n_layer", "H", "D", "D_v", "C", "V")),
        *((name, ctypes.c_int64) for name in ("layer_norm", "activation", "qk_norm", "rope")),
        ("layers", ctypes.c_void_p),
        ("final_norm", _Norm),
        ("head", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
        ("n_tables", ctypes.c_int64),
        ("n_threads", ctypes.c_int64),
        ("parallel", ctypes.c_void_p),
        ("scores", ctypes.c_void_p),
        ("n_scores", ctypes.c_int64),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("n", ctypes.c_int64),
        ("texts", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("first_wanted", ctypes.c_int64),
        ("logits", ctypes.c_void_p),
        ("work", ctypes.c_void_p),
    )


def why_not_native(model: GPT) -> str | None:
    """Say in a sentence why a model cannot be decoded natively, or None if it can.

    The first call in a process loads the kernel, and compiles it if none has before.
    """
    weight, config = model.token_embedding.weight, model.config
    if weight.device.type != "cpu":
        return f"its kernel is for CPUs, and the model is on '{weight.device}'"
    if weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return "its kernel computes in float32, and the model in another type"
    if config.engine not in ("auto", "cpu"):
        return f"the model's attention engine is '{config.engine}'"
    for number in range(config.n_layer):
        for pattern in config.stack.layer(number).heads(config.n_head):
            if _picks(layout_of(pattern, 1)):  # for any room alike
                return f"it has no kernel for the pattern '{pattern}'"
    return KERNEL.why_not()


def _picks(layout: Layout) -> bool:
    return isinstance(layout.rest, Everything) and not isinstance(layout.rest.pattern, Dense)


class NativeDecoder(IncrementalDecoder):
    """Computes by a native kernel, float32 on a CPU (see ``why_not_native``).

    The logits of a step are the same to the bit however many texts and threads there are.

    Args:
        model: in eval mode. Its weights may change in place while it is decoded, but not move.
        room: tokens that no text will exceed, if that is known: memory is taken for so many.
        by_steps: whether prompts too are read by the kernel, some tokens at a time, instead of in
            one pass: slower, but then no logits depend on how a text was cut into prompt and steps.
    """

    def __init__(self, model: GPT, room: int | None = None, *, by_steps: bool = False):
        super().__init__(model, room)
        self.by_steps = by_steps
        library = KERNEL.load()
        library.sparse_decode_most_tokens.restype = ctypes.c_int64
        library.sparse_decode_work.restype = ctypes.c_int64
        self._run, self._most = library.sparse_decode, library.sparse_decode_most_tokens()
        self._kept: list[object] = []  # what the kernel's structures point to
        self._tables = [
            model.token_embedding.weight,
            *(embedding.weight for embedding in model.earlier_embeddings),
            *([model.lookups.table] * model.config.lookups_per_token if model.lookups else []),
            *(model.positions.tables if model.positions is not None else []),
        ]

    def begin(self, texts):
        self.cache = make_cache(self.model, texts=texts, room=self.room)
        self._describe()

    def read(self, text, tokens):
        if not self.by_steps:
            whole = torch.tensor(tokens)
            return GrowingText(self.model.config, tokens), prefill(
                self.model, whole, self.cache, text
            )
        held = GrowingText(self.model.config)
        return held, self._append_to_one(text, held, tokens, last_only=True)[-1]

    def decode_tokens(self, tokens):
        """As one by one, to the bit, but the kernel is given several at a time."""
        [text] = self._texts.values()
        done = 0
        while done < len(tokens):
            free = self.model.config.seq_len - len(text.held.tokens)
            if free < 1:  # some of the context has to be dropped
                yield self.decode_one_token(torch.tensor([tokens[done]]))[0]
                done += 1
                continue
            piece = tokens[done : done + min(free, self._most)]
            text.length += len(piece)
            yield from self._append_to_one(0, text.held, piece)
            done += len(piece)

    def _append_to_one(
        self, text: int, held: GrowingText, tokens: Sequence[int], *, last_only: bool = False
    ) -> Tensor:
        """Append several tokens to one text: logits ``(n, V)`` of the token after each, or one."""
        steps = []
        for token in tokens:
            position = len(held.tokens)
            rows = held.append(token)
            steps.append(NextToken(text, position, held.recent(), rows))
        return self._append(steps, last_only)

    def append(self, tokens):
        return self._append(tokens, last_only=False)

    def _append(self, tokens: list[NextToken], last_only: bool) -> Tensor:
        pieces = [tokens[n : n + self._most] for n in range(0, len(tokens), self._most)]
        found = [self._append_few(piece, last_only) for piece in pieces]
        return found[-1] if last_only or len(found) == 1 else torch.cat(found)

    def copy(self, source, target):
        self.cache.copy_text(source, target)

    def forget_all_but(self, texts):
        self.cache.keep(list(texts))
        self._describe()

    def _append_few(self, tokens: list[NextToken], last_only: bool) -> Tensor:
        n, room = len(tokens), self.room
        first = n - 1 if last_only else 0  # whose logits are wanted
        texts, positions = self._texts_and_positions
        for index, token in enumerate(tokens):
            if token.position >= room:  # outside the memory that the kernel writes to
                raise IndexError(f"position {token.position} in a cache for {room}")
            texts[index], positions[index] = token.text, token.position
            self._rows[index] = [*token.recent, *token.rows, *self._places(token.position)]
        logits = torch.empty(n - first, self.model.config.vocab_size)
        self._step.n, self._step.first_wanted = n, first
        self._step.logits = logits.data_ptr()
        self._run(self._decoder_reference, self._step_reference)  # runs without the GIL
        return logits

    def _places(self, position: int) -> list[int]:
        positions = self.model.positions
        return [] if positions is None else positions.rows_of(position)

    def _describe(self) -> None:
        """Fill in the kernel's structures."""
        model, config = self.model, self.model.config
        self._kept = []
        layers = (_Layer * config.n_layer)()
        n_scores = 0
        for structure, block, cache in zip(layers, model.blocks, self.cache.layers, strict=True):
            structure.attention_norm = _norm(block.attention_norm)
            structure.feed_forward_norm = _norm(block.feed_forward_norm)
            structure.to_qkv = _linear(block.attention.to_qkv)
            structure.to_out = _linear(block.attention.to_out)
            structure.expand = _linear(block.feed_forward.expand)
            structure.contract = _linear(block.feed_forward.to_out)
            heads = (_Head * config.n_head)()
            n_scores = max(n_scores, self._describe_heads(heads, cache))
            structure.heads = self._keep(heads)
        n_threads = torch.get_num_threads()
        scores = torch.empty(n_threads, n_scores + _WIDEST_VECTOR)
        self._decoder = _Decoder(
            n_layer=config.n_layer,
            H=config.n_head,
            D=config.qk_width // config.n_head,
            D_v=config.n_embd // config.n_head,
            C=config.n_embd,
            V=config.vocab_size,
            layer_norm=config.norm == "layernorm",
            activation=_ACTIVATIONS[config.activation],
            qk_norm=config.qk_norm,
            rope=config.rotates,
            layers=self._keep(layers),
            final_norm=_norm(model.final_norm),
            head=model.head_weight.data_ptr(),
            tables=self._keep(_pointers(self._tables)),
            n_tables=len(self._tables),
            n_threads=n_threads,
            parallel=thread_pool(),
            scores=self._keep(scores),
            n_scores=scores.shape[1],
        )
        self._decoder_reference = ctypes.byref(self._decoder)
        width = KERNEL.load().sparse_decode_work(self._decoder_reference)
        self._texts_and_positions = np.zeros((2, self._most), dtype=np.int64)
        self._rows = np.zeros((self._most, len(self._tables)), dtype=np.int64)
        self._step = _Step(
            texts=self._texts_and_positions[0].ctypes.data,
            positions=self._texts_and_positions[1].ctypes.data,
            rows=self._rows.ctypes.data,
            work=self._keep(torch.empty(self._most * width)),
        )
        self._step_reference = ctypes.byref(self._step)

    def _describe_heads(self, heads: ctypes.Array, cache: LayerCache) -> int:
        """Fill in the heads of a layer; returns the most keys that a step of one reads."""
        most = 0
        for group in cache.groups:
            layout, parts = group.layout, group.layout.pattern.parts
            blocks = np.array(
                [p.length for p in parts if isinstance(p, BlockLocal)], dtype=np.int64
            )
            for index, number in enumerate(group.heads):
                head, rest = heads[number], layout.rest
                head.k, head.v = group.k[:, index].data_ptr(), group.v[:, index].data_ptr()
                head.k_text, head.v_text = group.k.stride(0), group.v.stride(0)
                head.rest = _RESTS[type(rest)]
                if layout.recent is not None:
                    head.ring = layout.recent.slots
                    head.window = max((p.window for p in parts if isinstance(p, Local)), default=0)
                    head.blocks, head.n_blocks = self._keep(blocks), len(blocks)
                if isinstance(rest, Columns):
                    head.below = self._keep(rest.below)
                if isinstance(rest, Residues):
                    head.stride, head.row = rest.stride, rest.row
                most = max(most, head.ring + (rest.longest_read if rest else 0))
        return most

    def _keep(self, what: object) -> int:
        """Hold something as long as the structures; returns its address."""
        self._kept.append(what)
        if isinstance(what, Tensor):
            return what.data_ptr()
        return what.ctypes.data if isinstance(what, np.ndarray) else ctypes.addressof(what)


def _linear(linear: nn.Linear) -> _Linear:
    weight = _as_it_lies(linear.weight)
    bias = None if linear.bias is None else linear.bias.data_ptr()
    return _Linear(weight.data_ptr(), bias, linear.in_features, linear.out_features)


def _norm(norm: nn.Module) -> _Norm:
    bias = getattr(norm, "bias", None)
    return _Norm(norm.weight.data_ptr(), None if bias is None else bias.data_ptr())


def _as_it_lies(weight: Tensor) -> Tensor:
    assert weight.is_contiguous(), "weights are made contiguous, and stay so"
    return weight


def _pointers(tables: Iterable[Tensor]) -> ctypes.Array:
    addresses = [_as_it_lies(table).data_ptr() for table in tables]
    return (ctypes.c_void_p * len(addresses))(*addresses)
