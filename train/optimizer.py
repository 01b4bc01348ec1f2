"""Muon for the decoder's matrices, AdamW for everything else, as one optimiser."""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import AdamW

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (https://kellerjordan.github.io/posts/muon)."""


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values end between 0.7 and 1.2.

    Args:
        matrices: `(N, rows, columns)`, float.
        steps: Newton-Schulz iterations.

    Returns:
        `(N, rows, columns)`.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class MuonAdamW(AdamW):
    """Muon (arXiv:2502.16982) on hidden matrices, AdamW on embeddings, heads, norms and biases.

    Muon's updates are scaled to AdamW's root mean square (section 2.2 there), so both share one
    learning rate and one weight decay. Matrices of one shape are orthogonalised together, in
    float32: many times faster on a CPU than `torch.optim.Muon`'s loop in bfloat16.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.95),
        momentum: float = 0.95,
    ):
        """Sorts the parameters that need gradients.

        Args:
            named_parameters: The model's; matrices inside `layers` go to Muon.
            lr: Learning rate of all.
            weight_decay: Decoupled; of matrices, and of no vector.
            betas: AdamW's.
            momentum: Muon's, Nesterov.
        """
        named = [(n, p) for n, p in named_parameters if p.requires_grad]
        hidden = [p for n, p in named if p.ndim == 2 and ".layers." in n]
        rest = [p for n, p in named if p.ndim != 2 or ".layers." not in n]
        groups = [
            {"params": hidden, "momentum": momentum},
            {"params": [p for p in rest if p.ndim > 1]},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
        ]
        super().__init__(
            [g for g in groups if g["params"]], lr=lr, betas=betas, weight_decay=weight_decay
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients: dict[nn.Parameter, Tensor] = {}
        for group in self.param_groups:
            if "momentum" in group:
                self._muon_step(group)
                # AdamW passes over a parameter without gradient.
                gradients.update({p: p.grad for p in group["params"] if p.grad is not None})
                for parameter in gradients:
                    parameter.grad = None
        super().step()
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        return loss

    def _muon_step(self, group: dict) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.shape].append(parameter)
        for shape, parameters in by_shape.items():
            updates = []
            for parameter in parameters:
                assert parameter.grad is not None
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())  # AdamW looks for it when it is loaded
                    state["momentum"] = torch.zeros_like(parameter)
                buffer = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                updates.append(parameter.grad.lerp(buffer, group["momentum"]))
            scale = 0.2 * max(shape) ** 0.5 * group["lr"]
            for parameter, update in zip(
                parameters, orthogonalise(torch.stack(updates).float()), strict=True
            ):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.to(parameter.dtype), alpha=-scale)
