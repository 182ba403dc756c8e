"""Adagrad by rows, for tables of which a step touches few rows."""

import torch


class RowAdagrad(torch.optim.Optimizer):
    """Move each row against its gradient, by a rate that falls with what the row has seen.

    A row's step is ``lr g / sqrt(sum of mean(g^2))``, the mean over its columns and the sum over
    all its steps: its first step has elements of about ``lr``, however rare it is and whatever the
    scale of the loss. Rows without gradient, and their state, stay as they are. Source: Duchi et
    al. 2011 (Adagrad), with one accumulator for a row.
    """

    def __init__(self, params, lr: float):
        super().__init__(params, dict(lr=lr))

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Update the rows that have a gradient; gradients are sparse, ``(rows, columns)``."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                state = self.state[table]
                if not state:
                    state["seen"] = table.new_zeros(len(table))
                gradient = table.grad.coalesce()
                rows, values = gradient.indices()[0], gradient.values()  # (n,), (n, columns)
                norms = torch.linalg.vector_norm(values, dim=1)
                seen = state["seen"][rows] + norms.square() / values.shape[1]
                state["seen"][rows] = seen
                # A gradient of nothing but zeros moves nothing.
                rate = group["lr"] * seen.clamp_min(torch.finfo(seen.dtype).tiny).rsqrt()
                table.index_add_(0, rows, values * -rate[:, None])
