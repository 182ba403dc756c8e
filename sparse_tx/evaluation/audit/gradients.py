"""Whole model: on which inputs the logits at a position depend, by gradients.

The gradients are those of the logits at one position with respect to the inputs of the first layer
at all positions at once. Where no layers lead from one to the other, a gradient is 0 exactly: each
of its summands has a factor 0. Where they do, it is not 0 in float64, whose range the products of
even many small weights do not leave. In float32 they may, so that only the former is shown there.
"""

import torch
from torch import Tensor

from sparse_tx.evaluation.audit.findings import Fault
from sparse_tx.model import GPT
from sparse_tx.patterns import reachability

# Numbers that are kept for a backward pass: 512 MB in float64.
_AT_ONCE = 1 << 26
# How many that are for a token, layer and unit of the model's width; a rough upper limit.
_KEPT_FOR_BACKWARD = 24
# Gradients in float64 begin here, so that they may shrink by as much more before they are 0.
_FIRST_GRADIENT = 2.0**700


def reachable_pairs(model: GPT, T: int) -> Tensor:
    """The inputs from which the layers of the configuration lead to a position.

    Returns:
        ``(T, T)`` bool on the CPU, with positions of the logits as rows.
    """
    config = model.config
    found = reachability(
        config.stack, T, n_layer=config.n_layer, n_head=config.n_head, max_examples=T * T
    )
    reached = torch.ones(T, T, dtype=torch.bool).tril()
    if found.examples:
        queries, keys = torch.tensor(found.examples).T
        reached[queries, keys] = False
    return reached


def dependencies(model: GPT, tokens: Tensor, queries: Tensor) -> Tensor:
    """Whether the logits at some positions have a gradient with respect to each input.

    Args:
        model: in eval mode; its weights need no gradients.
        tokens: ``(T,)``.
        queries: ``(n,)`` positions, on their device.

    Returns:
        ``(n, T)`` bool on the CPU.
    """
    T, config, weight = len(tokens), model.config, model.token_embedding.weight
    # Different factors, since a sum of the logits could be the same whatever they depend on.
    mix = torch.linspace(-1, 2, config.vocab_size, device=weight.device, dtype=weight.dtype)
    if weight.dtype == torch.float64:
        mix = mix * _FIRST_GRADIENT
    numbers = T * config.n_layer * config.n_embd * _KEPT_FOR_BACKWARD
    found = []
    for some in queries.split(max(1, _AT_ONCE // numbers)):
        added = weight.new_zeros(len(some), T, config.n_embd).requires_grad_()

        def add(module, inputs, output, added=added):
            return output + added

        with model.token_embedding.register_forward_hook(add):  # removed at the exit
            logits = model(tokens.repeat(len(some), 1))
        at = torch.arange(len(some), device=weight.device)
        gradient = torch.autograd.grad((logits[at, some] @ mix).sum(), added)[0]
        found.append(gradient.ne(0).any(-1).cpu())
    return torch.cat(found)


def find_dependency_fault(
    dependent: Tensor, reached: Tensor, queries: Tensor, path: str, *, finds_gaps: bool
) -> Fault | None:
    """The first pair at which ``dependencies`` are not what ``reachable_pairs`` says.

    Args:
        dependent: ``(n, T)``.
        reached: ``(T, T)``.
        queries: the n positions, on the CPU.
        path: what computed, for the message.
        finds_gaps: whether what is reached has to have a gradient.
    """
    expected = reached[queries]
    leaks, gaps = dependent & ~expected, expected & ~dependent
    for kind, wrong, sentence in (
        (
            "leak",
            leaks,
            "the logits at position {query} depend on the input at position {key}, from which no"
            " layers lead there",
        ),
        (
            "gap",
            gaps if finds_gaps else torch.zeros_like(gaps),
            "the logits at position {query} do not depend on the input at position {key}, from"
            " which layers lead there",
        ),
    ):
        if wrong.any():
            n, key = wrong.nonzero()[0].tolist()
            query = queries[n].item()
            return Fault(
                kind=kind,
                path=path,
                seq_len=reached.shape[1],
                query=query,
                key=key,
                what=sentence.format(query=query, key=key),
            )
    return None
