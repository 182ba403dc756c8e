import pytest
import torch

from sparse_tx.checkpoint import save_checkpoint
from sparse_tx.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from sparse_tx.data import ByteTokenizer
from sparse_tx.model import GPT


@pytest.fixture
def make_config():
    """A whole configuration around a tiny model with these settings."""

    def make_config(**model):
        return RunConfig(
            model=ModelConfig(
                seq_len=16, n_layer=2, n_head=2, n_embd=8, pattern="local:4,strided:4", **model
            ),
            data=DataConfig(),
            training=TrainingConfig(max_steps=5, lr=3e-4, ema=0.9),
        )

    return make_config


@pytest.fixture
def config(make_config):
    return make_config(dropout=0.1)


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def save(run, config):
    """Save a checkpoint whose weights all equal its step, and averaged weights its step + 0.5."""

    def save(step, *, ema=False, keep_last=3, valid_bpb=None, config=config, **other):
        state = {
            name: torch.full_like(tensor, step)
            for name, tensor in GPT(config.model).state_dict().items()
        }
        arguments = {
            "model_state": state,
            "ema_state": {name: tensor + 0.5 for name, tensor in state.items()} if ema else None,
            "tokenizer": ByteTokenizer(),
            "training_state": {"step": step, "moments": [torch.full((3,), step)]},
        }
        return save_checkpoint(
            run,
            step=step,
            config=config,
            keep_last=keep_last,
            valid_bpb=valid_bpb,
            **arguments | other,
        )

    return save
