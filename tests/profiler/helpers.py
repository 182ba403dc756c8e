"""Settings that take a moment, and one that takes an hour."""

from sparse_tx.config import ModelConfig, TrainingConfig
from sparse_tx.profiler.records import Setting


def make_setting(work="train", training=(), **model):
    sizes = dict(seq_len=37, n_layer=2, n_head=2, n_embd=12, pattern="local:5,strided:5")
    recipe = dict(max_steps=1, batch_size=3) | dict(training)
    config = ModelConfig(**sizes | model)
    return Setting(work=work, label=config.pattern, model=config, training=TrainingConfig(**recipe))


def make_endless_setting(work="forward"):
    """Dense attention over so many tokens that nobody waits for it; it holds half a gigabyte."""
    sizes = dict(seq_len=1 << 19, n_head=1, n_embd=64, n_layer=1, pattern="dense")
    return make_setting(work, {"batch_size": 1}, **sizes)
