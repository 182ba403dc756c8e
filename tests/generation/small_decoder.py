"""A decoder written out in NumPy, one token at a time, that shares nothing with the package's."""

import numpy as np

from tests.helpers import paper_set


class SmallDecoder:
    """Reads a model's weights by name, and the pairs of its patterns from the paper's sets.

    Positions by rotation, by one table or none; n-grams and recall are not its affair.
    """

    def __init__(self, model, T):
        self.config = model.config
        self.w = {name: p.detach().double().numpy() for name, p in model.state_dict().items()}
        H, layers = self.config.n_head, self.config.pattern.split(",")
        self.allowed = []
        for n in range(self.config.n_layer):
            groups = layers[n % len(layers)].split("/")
            heads = [groups[h * len(groups) // H] for h in range(H)]
            self.allowed.append([paper_set(head, T, h) for h, head in enumerate(heads)])
        self.keys = [[[] for _ in range(H)] for _ in range(self.config.n_layer)]
        self.values = [[[] for _ in range(H)] for _ in range(self.config.n_layer)]
        self.tokens = []

    def step(self, token):
        """The logits after one more token, the start symbol included."""
        config, w = self.config, self.w
        self.tokens.append(token)
        i = len(self.tokens) - 1
        x = w["token_embedding.weight"][token].copy()
        for back in range(1, config.recent_tokens):
            earlier = self.tokens[i - back] if back <= i else config.vocab_size
            x += w[f"earlier_embeddings.{back - 1}.weight"][earlier]
        if config.position == "table":
            x += w["positions.tables.0"][i]
        for n in range(config.n_layer):
            x = self.block(x, n, i)
        x = self.norm(x, "final_norm")
        head = "token_embedding.weight" if config.tie_embeddings else "head.weight"
        return w[head][: config.vocab_size] @ x

    def block(self, x, n, i):
        config, H, name = self.config, self.config.n_head, f"blocks.{n}."
        qkv = self.linear(self.norm(x, name + "attention_norm"), name + "attention.to_qkv")
        of_heads = [
            np.split(part, H) for part in np.split(qkv, [config.qk_width, 2 * config.qk_width])
        ]
        out = []
        for h, (q, k, v) in enumerate(zip(*of_heads, strict=True)):
            if config.qk_norm:
                q, k = ((y - y.mean()) / np.sqrt(y.var() + 1e-5) for y in (q, k))
            if "rope" in config.position:
                q, k = self.rotate(q, i), self.rotate(k, i)
            self.keys[n][h].append(k)
            self.values[n][h].append(v)
            reads = [j for j in range(i + 1) if (i, j) in self.allowed[n][h]]
            if not reads:
                out.append(np.zeros_like(v))
                continue
            scores = np.array([self.keys[n][h][j] @ q for j in reads]) / np.sqrt(len(q))
            weights = np.exp(scores - scores.max())
            out.append(weights @ np.array([self.values[n][h][j] for j in reads]) / weights.sum())
        x = x + self.linear(np.concatenate(out), name + "attention.to_out")
        hidden = self.norm(x, name + "feed_forward_norm")
        hidden = self.activate(self.linear(hidden, name + "feed_forward.expand"))
        return x + self.linear(hidden, name + "feed_forward.to_out")

    def rotate(self, x, i):
        angle = i * 10_000.0 ** (-np.arange(0, len(x), 2) / len(x))
        turned = (x[::2] + 1j * x[1::2]) * np.exp(1j * angle)
        return np.stack([turned.real, turned.imag], axis=-1).ravel()

    def activate(self, x):
        if self.config.activation == "relu2":
            return np.maximum(x, 0) ** 2
        if self.config.activation == "gelu":
            return x / (1 + np.exp(-1.702 * x))
        gate, x = np.split(x, 2)
        return gate / (1 + np.exp(-gate)) * x

    def norm(self, x, name):
        if self.config.norm == "rmsnorm":
            x = x / np.sqrt((x**2).mean() + 1e-6)
        else:
            x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        return x * self.w[name + ".weight"] + self.w.get(name + ".bias", 0)

    def linear(self, x, name):
        return self.w[name + ".weight"] @ x + self.w.get(name + ".bias", 0)
