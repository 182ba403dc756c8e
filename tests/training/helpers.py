"""A small corpus and runs over it that take a second."""

import json

import torch

from sparse_tx.checkpoint import read_checkpoint
from sparse_tx.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from sparse_tx.data import prepare_corpus
from sparse_tx.training import Reporter, Trainer

TEXT = b"".join(b"%d times %d is %d\n" % (a, b, a * b) for a in range(40) for b in range(20))


def make_corpus(folder, **settings):
    source = folder / "text.txt"
    source.write_bytes(TEXT)
    return prepare_corpus(str(source), cache_dir=folder / "cache", **settings)


def make_config(**training):
    """Odd intervals throughout, so that nothing coincides by chance."""
    defaults = dict(
        max_steps=23,
        batch_size=3,
        accumulation=2,
        lr=3e-3,
        warmup_steps=4,
        ema=0.9,
        eval_every=7,
        save_every=5,
        log_every=1,
        keep_last=3,
        eval_bytes=300,
        final_eval_bytes=500,
        sample_length=6,
        device="cpu",
    )
    model = ModelConfig(
        seq_len=31,
        n_layer=2,
        n_head=2,
        n_embd=16,
        pattern="local:5,strided:5",
        dropout=0.2,
        init="paper-code",
        recompute=True,
    )
    return RunConfig(model=model, data=DataConfig(), training=TrainingConfig(**defaults | training))


def make_trainer(corpus, run_dir, config=None, resume=False, reporter=None, started=None):
    import time

    run_dir.mkdir(exist_ok=True)
    return Trainer(
        config or make_config(),
        corpus,
        run_dir,
        reporter or Reporter(),
        device=torch.device("cpu"),
        started=time.monotonic() if started is None else started,
        checkpoint=read_checkpoint(run_dir, with_training_state=True) if resume else None,
    )


def read_metrics(run_dir, *names):
    """The named figures of each line of the log."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [tuple(line.get(name) for name in names) for line in lines]
