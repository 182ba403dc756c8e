"""The decoder: a stack of residual blocks whose attention follows sparse patterns."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparse_tx.attention import check_engine_name, resolve_engine
from sparse_tx.config import ModelConfig
from sparse_tx.errors import UserError
from sparse_tx.model.block import Block, make_norm
from sparse_tx.model.long_blocks import through_long_blocks
from sparse_tx.model.lookups import Lookups
from sparse_tx.model.loss import chunked_cross_entropy
from sparse_tx.model.positions import PositionTables


class GPT(nn.Module):
    """The paper's decoder (arXiv:1904.10509, section 5), with newer choices as options.

    A token predicts the one after it. Before the first token of a text stands the start symbol,
    whose id is ``config.vocab_size``: the embedding has one row more than the vocabulary.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        check_engine_name(config.engine)  # whether it can run depends on where the model goes
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size + 1, config.n_embd)
        self.earlier_embeddings = nn.ModuleList(
            nn.Embedding(config.vocab_size + 1, config.n_embd)
            for _ in range(config.recent_tokens - 1)
        )
        self.lookups = Lookups(config) if config.lookup_rows else None
        axes = config.position_axes
        self.positions = PositionTables(axes, config.n_embd) if axes else None
        stack = config.stack
        self.blocks = nn.ModuleList(Block(config, stack.layer(n)) for n in range(config.n_layer))
        self.final_norm = make_norm(config)
        if not config.tie_embeddings:
            self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.initialise()

    def engine(self) -> tuple[str, str]:
        """The attention engine that runs where the model is now, and why it was chosen.

        Under autocast, that for the type which it computes in.

        Raises:
            UserError: the configuration names an engine that cannot run there.
        """
        weight, H = self.token_embedding.weight, self.config.n_head
        kind = weight.device.type
        autocast = torch.is_autocast_enabled(kind)
        return resolve_engine(
            self.config.engine,
            device=weight.device,
            dtype=torch.get_autocast_dtype(kind) if autocast else weight.dtype,
            D=self.config.qk_width // H,
            D_v=self.config.n_embd // H,
            heads=tuple(head for layer in self.config.stack.layers for head in layer.heads(H)),
        )

    @property
    def start_token(self) -> int:
        """The id that stands before the first token of a text."""
        return self.config.vocab_size

    @property
    def head_weight(self) -> Tensor:
        """The head: ``(V, C)``."""
        if self.config.tie_embeddings:
            return self.token_embedding.weight[: self.config.vocab_size]
        return self.head.weight

    def n_parameters(self) -> int:
        """Count all parameters, embeddings included, shared ones once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw the initial weights (arXiv:1904.10509, section 6).

        Weights have standard deviation .125 / sqrt(fan-in), or sqrt(.125 / fan-in) by the authors'
        code; the two branch outputs of a block are smaller by sqrt(2 n_layer), or zero; biases and
        the head are zero; tokens .125 / sqrt(C), each position table .125 / sqrt(C n_tables). With
        zero branch outputs, token embeddings make inputs of unit variance instead, unless they are
        the head too.
        """
        C = self.config.n_embd
        for module in self.modules():
            if isinstance(module, nn.Linear):
                fan_in = module.in_features
                by_paper = self.config.init == "paper"
                std = 0.125 / fan_in**0.5 if by_paper else (0.125 / fan_in) ** 0.5
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    module.bias.zero_()
        for block in self.blocks:
            for branch in (block.attention, block.feed_forward):
                zero = self.config.init == "zero-out"
                branch.to_out.weight.mul_(0 if zero else (2 * self.config.n_layer) ** -0.5)
        token_std = 0.125 / C**0.5
        if self.config.init == "zero-out" and not self.config.tie_embeddings:
            token_std = self.config.recent_tokens**-0.5
        for embedding in (self.token_embedding, *self.earlier_embeddings):
            nn.init.normal_(embedding.weight, std=token_std)
        if self.positions is not None:
            tables = self.positions.tables
            for table in tables:
                nn.init.normal_(table, std=0.125 / (C * len(tables)) ** 0.5)
        if not self.config.tie_embeddings:
            self.head.weight.zero_()

    def embed(self, tokens: Tensor) -> Tensor:
        """What the first block gets for ``(B, T)`` tokens: ``(B, T, C)``."""
        T = tokens.shape[1]
        x = self.token_embedding(tokens)
        for back, embedding in enumerate(self.earlier_embeddings, start=1):
            earlier = F.pad(tokens, (back, 0), value=self.start_token)[:, :T]
            x = x + embedding(earlier)
        if self.lookups is not None:
            x = x + self.lookups(tokens)
        if self.positions is not None:
            x = x + self.positions(T)
        return x

    def embed_one_token(self, recent: Tensor, rows: Tensor, position: int) -> Tensor:
        """The same for one more token of each of n texts, ``(n, 1, C)``.

        Args:
            recent: the token and those before it, ``(n, recent_tokens)`` int64, latest first;
                the start symbol stands for those before a text.
            rows: of the look-ups, ``(n, lookups_per_token)`` int64.
            position: of the token.
        """
        x = self.token_embedding(recent[:, :1])
        for back, embedding in enumerate(self.earlier_embeddings, start=1):
            x = x + embedding(recent[:, back : back + 1])
        if self.lookups is not None:
            x = x + self.lookups.of_rows(rows).unsqueeze(1)
        if self.positions is not None:
            x = x + self.positions(1, position)
        return x

    def hidden(self, tokens: Tensor) -> Tensor:
        """The normalised output of the last block for ``(B, T)`` tokens: ``(B, T, C)``."""
        T = tokens.shape[1]
        if self.config.seq_len < T:
            raise UserError(f"{T} tokens at once; the model's seq_len is {self.config.seq_len}")
        x = self.embed(tokens)
        if self.config.head_chunk is not None:
            return self.final_norm(through_long_blocks(x, self.blocks))
        for block in self.blocks:
            if self.config.recompute and torch.is_grad_enabled():
                # The random state is kept, so that dropout repeats itself in the second pass.
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=True)
            else:
                x = block(x)
        return self.final_norm(x)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(B, T, V)`` of the token after each of ``tokens`` ``(B, T)``.

        Raises:
            UserError: T is larger than ``seq_len``.
        """
        return self.hidden(tokens) @ self.head_weight.T

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Total cross-entropy of ``targets`` ``(B, T)`` given ``tokens`` ``(B, T)``, in nats."""
        hidden = self.hidden(tokens).flatten(0, 1)
        return chunked_cross_entropy(hidden, self.head_weight, targets.flatten(), self.config.chunk)
