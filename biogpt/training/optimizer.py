"""Muon for the hidden matrices, AdamW for everything else."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from biogpt.runners.precision import bfloat16_pays


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    Matrices of one shape are updated together, which keeps small models busy.

    Args:
        parameters: 2-D weights of hidden layers, or groups of them with rates of their own.
        lr: step in units of the spectral norm.
        momentum: of the Nesterov average.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter] | list[dict[str, Any]], lr: float, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append((parameter, parameter.grad))
            for (rows, columns), pairs in by_shape.items():
                updates = []
                for parameter, gradient in pairs:
                    state = self.state[parameter]
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    state["momentum"].lerp_(gradient, 1 - group["momentum"])
                    updates.append(gradient.lerp(state["momentum"], group["momentum"]))
                scale = -group["lr"] * max(1, rows / columns) ** 0.5
                for (parameter, _), update in zip(pairs, orthogonal(torch.stack(updates)), strict=True):
                    parameter.add_(update.to(parameter.dtype), alpha=scale)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrices with singular values near 1, by five Newton–Schulz steps, in bfloat16 where it is fast.

    Args:
        matrices: [N, rows, columns].

    Returns:
        [N, rows, columns] in the type computed in.
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # Jordan's quintic: steep at 0, singular values end in 0.7 to 1.2
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if bfloat16_pays(x.device.type):
        x = x.bfloat16()
    for _ in range(steps):
        square = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x


def make_optimizers(model: nn.Module, muon_lr: float, adam_lr: float) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the weights of attention and feed-forward layers; AdamW for embeddings, norms and biases."""
    hidden = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    chosen = set(hidden)
    others = [p for p in model.parameters() if p not in chosen]
    adam = torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)
    return Muon(hidden, lr=muon_lr), adam
