"""Attention within graphs that torch.compile makes."""

import pytest
import torch

from sparse_tx import GPT, ModelConfig, parse_pattern, sparse_attention

LAYER = parse_pattern("local:6/strided:5+fixed:9:3").layers[0]


def both(attend, backend):
    """The output and the gradient of q, as Python runs it and as ``backend`` does."""
    torch._dynamo.reset()
    results = []
    for function in (attend, backend(attend)):
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(1, 2, 50, 8, generator=generator) for _ in range(3))
        out = function(q.requires_grad_(), k, v)
        out.sum().backward()
        results.append((out.detach(), q.grad))
    return results


def test_the_native_kernel_breaks_no_graph():
    def attend(q, k, v):
        return sparse_attention(2 * q, k, v, LAYER, engine="cpu").sin()

    def backend(function):
        return torch.compile(function, backend="aot_eager", fullgraph=True)

    torch.testing.assert_close(*both(attend, backend))


def test_a_model_is_one_graph():
    torch._dynamo.reset()
    torch.manual_seed(0)
    config = ModelConfig(
        n_layer=2, n_head=2, n_embd=16, seq_len=24, pattern="local:5,strided:5", engine="cpu"
    )
    model = GPT(config)
    tokens = torch.randint(0, config.vocab_size, (2, 24))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens), model(tokens))


@pytest.mark.filterwarnings("ignore::UserWarning")  # those of tracing are torch's own
@pytest.mark.parametrize("engine", ["reference", "views", "cpu"])
def test_with_breaks_every_engine_computes_the_same(engine):
    def attend(q, k, v):
        return sparse_attention(2 * q, k, v, str(LAYER), engine=engine).sin()

    torch.testing.assert_close(
        *both(attend, lambda function: torch.compile(function, backend="aot_eager"))
    )
