"""Muon, the optimizer of the U-Nets: an equally large step along every direction of a matrix.

The gradient of a weight matrix mostly points along few directions, and Adam's step does so too.
What only a few images teach, such as a rare word of a caption, lies along the others, and is
learned slowly. Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) replaces the averaged
gradient U S V^T by U V^T: all directions count the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from minimagen.unet import Unet

# The polynomial a s + b s^3 + c s^5 moves each singular value s in (0, 1] towards 1. Its slope at 0
# is steep, so small ones grow fast; large ones end between 0.7 and 1.2, which is near enough.
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 3
RMS = 0.2  # root mean square of the entries of a step, as Adam's; so both share a learning rate


def split(unet: Unet) -> tuple[list[Tensor], list[Tensor]]:
    """The weights of a U-Net: its matrices, and all others.

    Matrices are the weights of linear layers and convolutions, but for the first and the last
    convolution: these join the network's features to the three colours.
    """
    ends = (unet.stem, unet.out)
    inner = [m for m in unet.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and m not in ends]
    large = [layer.weight for layer in inner]
    known = {id(weight) for weight in large}
    return large, [weight for weight in unet.parameters() if id(weight) not in known]


def orthogonalised(g: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """U V^T of matrices g = U S V^T, nearly: (N, rows, columns), float32, the same shape.

    The Newton-Schulz iteration of Muon. Every step of it is x <- p(x x^T) x with a polynomial p,
    and these commute. So it runs on the small square matrix x x^T, and x is multiplied once.
    """
    tall = g.shape[1] > g.shape[2]
    x = g.mT if tall else g
    gram = x @ x.mT
    squares = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] + 1e-14  # |x|^2, above all S^2
    gram = gram / squares
    product = step = _polynomial(gram)
    for _ in range(iterations - 1):
        gram = step @ (step @ gram)
        step = _polynomial(gram)
        product = step @ product
    out = (product @ x) * squares.rsqrt()
    return out.mT if tall else out


def _polynomial(gram: Tensor) -> Tensor:
    """A + B gram + C gram^2."""
    p = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
    p.diagonal(dim1=1, dim2=2).add_(A)
    return p


class Muon(torch.optim.AdamW):
    """Muon for matrices, Adam without weight decay for all other weights.

    matrices: weights with two dimensions or more; all but the first are one, as in a convolution:
              (out, in, height, width) is (out, in * height * width)
    others:   all other weights
    momentum: decay of the moving average of the gradients of matrices; the step looks ahead by one
              (Nesterov)
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        lr: float = 2e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        fused: bool = False,
    ) -> None:
        groups = [{"params": list(matrices)}, {"params": list(others)}]
        super().__init__(groups, lr=lr, betas=betas, weight_decay=0.0, fused=fused)
        self.momentum = momentum
        # A fused AdamW looks at the scaler's flags itself, and Muon does not: the scaler leaves out
        # the whole step, when gradients of fp16 are infinite.
        self._step_supports_amp_scaling = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a saved state. Adam wants the number of steps of each weight; matrices have none."""
        states = state["state"]
        matrices = [weight for weight, kept in states.items() if "momentum_buffer" in kept]
        averages = {weight: states.pop(weight) for weight in matrices}
        super().__setstate__(state)
        self.state.update(averages)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. The gradients of the matrices are None after it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}  # by rows and columns
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(weight)
            average = state["momentum_buffer"].lerp_(weight.grad, 1 - self.momentum)
            ahead = weight.grad.lerp(average, self.momentum).flatten(1).float()
            alike.setdefault((ahead.shape[0], ahead.shape[1]), []).append((weight, ahead))
            weight.grad = None  # so AdamW passes this weight by
        for (rows, columns), pairs in alike.items():
            directions = orthogonalised(torch.stack([ahead for _, ahead in pairs]))
            # an orthogonal matrix has entries of mean square 1 / max(rows, columns)
            length = group["lr"] * RMS * math.sqrt(max(rows, columns))
            for (weight, _), direction in zip(pairs, directions, strict=True):
                weight.sub_(direction.view_as(weight), alpha=length)
        super().step()
        return loss
