"""Whole model: what changes, bit by bit, when a token is replaced by another.

Everything that the model computes on its way is compared with what it was before: the inputs of
each layer, the outputs of each of its heads, the logits. A head's output may change at a position
whose own input did, or that is allowed to read one which did; nothing else may. The inputs of the
first layer change at the token's own position and later ones, and so, by induction, no logits
before the token do.

Bits can be compared because both texts are computed in the same shapes and in the same place of a
batch. In a batch of another size, products of matrices may be summed in another order, and the same
text gives logits that differ in their last bits. What a flip changes, on the other hand, may be
lost to rounding on its way: that everything arrives is shown by ``gradients``.
"""

import torch
from torch import Tensor

from sparse_tx.evaluation.audit.findings import Fault
from sparse_tx.evaluation.audit.stages import stages
from sparse_tx.evaluation.audit.texts import flip
from sparse_tx.masks import dense_mask
from sparse_tx.model import GPT

# Numbers that are kept of a batch of texts: 128 MB in float32.
_AT_ONCE = 1 << 25


class FlipTest:
    """Flips tokens of one text, some at a time, for one model and engine.

    Args:
        model: in eval mode.
        path: what computes, for the message.
        tokens: ``(T,)``.
    """

    def __init__(self, model: GPT, path: str, tokens: Tensor):
        self.model, self.path, self.tokens = model, path, tokens
        self.allowed = allowed_pairs(model, len(tokens))
        # Of the text as it is, as often as tokens were flipped the last time.
        self._before: list[Tensor] = []

    def find_leak(self, positions: Tensor) -> Fault | None:
        """Flip the tokens at ``(n,)`` positions one at a time; where a change first goes astray."""
        T, config = len(self.tokens), self.model.config
        numbers = T * (config.n_embd * (2 * config.n_layer + 1) + config.vocab_size)
        for some in positions.split(max(1, _AT_ONCE // numbers)):
            if not self._before or len(self._before[0]) != len(some):
                self._before = stages(self.model, self.tokens.repeat(len(some), 1))
            flipped = flip(self.model, self.tokens, some)
            after = stages(self.model, flipped)
            flips = _Flips(self.model, self.path, self.tokens, some, flipped)
            fault = flips.compare(self._before, after, self.allowed)
            if fault is not None:
                return fault
        return None


def allowed_pairs(model: GPT, T: int) -> list[Tensor]:
    """What the configuration allows the heads of each layer: ``(H, T, T)`` bool each."""
    H, device = model.config.n_head, model.token_embedding.weight.device
    layers = [model.config.stack.layer(n) for n in range(model.config.n_layer)]
    masks = {layer: dense_mask(layer, T, device, n_head=H) for layer in set(layers)}
    return [masks[layer] for layer in layers]


def embedded_range(model: GPT, T: int) -> int:
    """How many inputs of the first layer, from its own on, a token may be part of."""
    config = model.config
    return T if config.recall else max(config.recent_tokens, *config.ngrams, 1)


class _Flips:
    """A batch of n texts, in each of which one token is another than it was."""

    def __init__(self, model: GPT, path: str, tokens: Tensor, positions: Tensor, flipped: Tensor):
        self.model, self.path = model, path
        self.tokens, self.positions, self.flipped = tokens, positions, flipped
        place = torch.arange(len(tokens), device=tokens.device)
        self.distance = place - positions[:, None]  # (n, T), below 0 before the token

    def compare(
        self, before: list[Tensor], after: list[Tensor], allowed: list[Tensor]
    ) -> Fault | None:
        """The first fault on the way through the model; ``stages`` says what the lists hold."""
        changed = _differ(before[0], after[0])  # (n, T)
        fault = self._in_inputs(changed)
        for layer, pairs in enumerate(allowed):
            H, (heads, output) = len(pairs), (2 * layer + 1, 2 * layer + 2)
            of_heads = _differ(*(x[heads].unflatten(-1, (H, -1)) for x in (before, after)))
            reads = torch.einsum("hij,nj->nih", pairs.float(), changed.float()) > 0  # (n, T, H)
            fault = fault or self._leak(
                of_heads & ~reads & ~changed[..., None],
                "the output at position {query} changes with the token at position {key}, and the"
                " pattern allows it no position whose input did",
                layer,
                is_head=True,
            )
            now = _differ(before[output], after[output])
            fault = fault or self._leak(
                (now & ~changed & ~of_heads.any(-1))[..., None],
                "the output at position {query} changes with the token at position {key}, and"
                " neither its input there nor the output of a head did",
                layer,
            )
            if fault is not None:
                return fault
            changed = now
        return self._leak(
            (_differ(before[-1], after[-1]) & ~changed)[..., None],
            "the logits at position {query} change with the token at position {key}, and the output"
            " of the last layer there did not",
        )

    def _in_inputs(self, changed: Tensor) -> Fault | None:
        may = (self.distance >= 0) & (self.distance < embedded_range(self.model, len(self.tokens)))
        must = torch.zeros_like(changed)
        old = self.tokens[self.positions]
        new = self.flipped.gather(1, self.positions[:, None])[:, 0]
        tables = [self.model.token_embedding, *self.model.earlier_embeddings]
        for back, table in enumerate(tables):
            must |= (self.distance == back) & _differ(table.weight[old], table.weight[new])[:, None]
        return self._leak(
            (changed & ~may)[..., None],
            "the input of the first layer at position {query} changes with the token at position"
            " {key}, which no embedding there is of",
        ) or self._fault(
            "gap",
            (must & ~changed)[..., None],
            "the input of the first layer at position {query} does not change with the token at"
            " position {key}, of which an embedding there is",
        )

    def _leak(
        self, wrong: Tensor, sentence: str, layer: int | None = None, *, is_head: bool = False
    ) -> Fault | None:
        return self._fault("leak", wrong, sentence, layer, is_head=is_head)

    def _fault(
        self,
        kind,
        wrong: Tensor,
        sentence: str,
        layer: int | None = None,
        *,
        is_head: bool = False,
    ) -> Fault | None:
        """The first fault marked in ``(n, T, heads)``, or in ``(n, T, 1)``."""
        if not wrong.any():
            return None
        n, query, head = wrong.nonzero()[0].tolist()
        key = self.positions[n].item()
        return Fault(
            kind=kind,
            path=self.path,
            seq_len=len(self.tokens),
            query=query,
            key=key,
            layers=() if layer is None else (layer,),
            head=head if is_head else None,
            what=sentence.format(query=query, key=key),
        )


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """Where vectors differ in a bit: the shape without the last dimension."""
    return (a != b).any(-1)
