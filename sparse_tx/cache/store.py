"""Keys and values of texts that grow: one cache for each layer, laid out by the heads' patterns."""

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_tx.cache.layout import Layout, layout_of
from sparse_tx.patterns import Layer, Stack

# Reads in more pieces than this are gathered by index instead of piece by piece.
_FEW_PIECES = 4


@dataclass(frozen=True)
class HeadGroup:
    """Neighbouring heads of one pattern, whose keys lie alike.

    Attributes:
        heads: their numbers.
        layout: where their keys are.
        k: keys ``(N, heads, slots, D)``.
        v: values ``(N, heads, slots, D_v)``.
    """

    heads: range
    layout: Layout
    k: Tensor
    v: Tensor

    @property
    def bytes_of_a_slot(self) -> int:
        """Bytes of one slot of every text and head."""
        texts, heads, _, D = self.k.shape
        return texts * heads * (D + self.v.shape[-1]) * self.k.element_size()


class LayerCache:
    """Keys and values of one layer for N texts of up to ``room`` tokens each.

    Memory for them is taken once, here, and not by the steps of generation. Positions count from 0,
    the start symbol's; keys are stored rotated for theirs, and never again.

    Args:
        layer: the patterns.
        n_head: heads H.
        texts: N.
        room: tokens.
        D: head dimension of keys.
        D_v: head dimension of values.
        dtype: of both.
        device: of both.
    """

    def __init__(
        self,
        layer: Layer,
        *,
        n_head: int,
        texts: int,
        room: int,
        D: int,
        D_v: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.groups: list[HeadGroup] = []
        options = {"dtype": dtype, "device": device}
        numbered = enumerate(layer.heads(n_head))
        for pattern, members in groupby(numbered, key=lambda each: each[1]):
            heads = [head for head, _ in members]
            layout = layout_of(pattern, room)
            shape = (texts, len(heads), layout.slots)
            k, v = (torch.empty(*shape, width, **options) for width in (D, D_v))
            self.groups.append(HeadGroup(range(heads[0], heads[-1] + 1), layout, k, v))

    def fill(self, text: int, heads: range, k: Tensor, v: Tensor) -> None:
        """Begin a text with the keys and values of its first T tokens, at some of the heads.

        Args:
            text: its number.
            heads: numbers of the heads.
            k: ``(T, heads, D)``.
            v: ``(T, heads, D_v)``.
        """
        for group in self.groups:
            shared = range(max(heads.start, group.heads.start), min(heads.stop, group.heads.stop))
            if not shared:
                continue
            positions, slots = map(torch.from_numpy, group.layout.fills(len(k)))
            positions, slots = positions.to(k.device), slots.to(k.device)
            for head in shared:
                for whole, new in ((group.k, k), (group.v, v)):
                    kept = new[:, head - heads.start].index_select(0, positions)
                    whole[text, head - group.heads.start].index_copy_(
                        0, slots, kept.to(whole.dtype)
                    )

    def attend(self, texts: slice, position: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append one token to some texts of one length, and attend from it.

        Args:
            texts: n of the N.
            position: of the token.
            q: its queries ``(n, H, D)``.
            k: its keys, of the same shape.
            v: its values ``(n, H, D_v)``.

        Returns:
            ``(n, H, D_v)``; zeros at heads where the token may read nothing.
        """
        out = torch.zeros_like(v)
        for group in self.groups:
            here = slice(group.heads.start, group.heads.stop)
            keys, values = group.k[texts], group.v[texts]  # views
            for slot in group.layout.writes(position):
                keys[:, :, slot], values[:, :, slot] = k[:, here], v[:, here]
            reads = group.layout.reads(position)
            if reads:
                found = F.scaled_dot_product_attention(
                    q[:, here, None].to(keys.dtype), _slots(keys, reads), _slots(values, reads)
                )
                out[:, here] = found[:, :, 0]
        return out

    def copy_text(self, source: int, target: int) -> None:
        """Let one text be what another is."""
        for group in self.groups:
            for whole in (group.k, group.v):
                whole[target].copy_(whole[source])

    def keep(self, texts: list[int]) -> None:
        """Forget all texts but those of these numbers, which are counted anew in their order."""
        self.groups = [
            HeadGroup(group.heads, group.layout, group.k[texts], group.v[texts])
            for group in self.groups
        ]


def _slots(whole: Tensor, reads: list[range]) -> Tensor:
    """Slots of ``(n, heads, slots, D)``: a view where they are one range."""
    if len(reads) == 1:
        return whole[:, :, reads[0].start : reads[0].stop]
    if len(reads) <= _FEW_PIECES:
        return torch.cat([whole[:, :, slots.start : slots.stop] for slots in reads], dim=2)
    index = np.concatenate([np.arange(slots.start, slots.stop) for slots in reads])
    return whole.index_select(2, torch.from_numpy(index).to(whole.device))


class KVCache:
    """One ``LayerCache`` for each of ``n_layer`` layers; arguments as there."""

    def __init__(self, stack: Stack, *, n_layer: int, **of_a_layer):
        self.layers = [LayerCache(stack.layer(n), **of_a_layer) for n in range(n_layer)]

    @property
    def nbytes(self) -> int:
        """Bytes of all slots, used or not yet."""
        return sum(group.k.nbytes + group.v.nbytes for group in self._groups)

    def bytes_stored(self, T: int) -> int:
        """Bytes of what texts of ``T`` tokens leave for later ones to read."""
        return sum(len(g.layout.fills(T)[1]) * g.bytes_of_a_slot for g in self._groups)

    def bytes_read(self, T: int) -> int:
        """Bytes that the step of the last of ``T`` tokens reads, its own included."""
        return sum(
            sum(map(len, group.layout.reads(T - 1))) * group.bytes_of_a_slot
            for group in self._groups
        )

    @property
    def _groups(self) -> list[HeadGroup]:
        return [group for layer in self.layers for group in layer.groups]

    def occupy(self) -> None:
        """Write to all slots, so that the system gives their memory now.

        It gives none for what was only asked for, until texts first grow into it.
        """
        for group in self._groups:
            group.k.zero_()
            group.v.zero_()

    def copy_text(self, source: int, target: int) -> None:
        """Let one text be what another is, in every layer."""
        for layer in self.layers:
            layer.copy_text(source, target)

    def keep(self, texts: list[int]) -> None:
        """Forget all texts but those of these numbers, in every layer."""
        for layer in self.layers:
            layer.keep(texts)
