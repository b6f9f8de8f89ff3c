"""Muon for the matrices of the blocks, AdamW for embeddings, heads and vectors."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from llm_lightning.errors import UserError
from llm_lightning.optimizers.sharded import batches, local, orthogonalize

FUSED = ("cpu", "cuda")
"""Devices on which AdamW is one kernel."""


class Muon(Optimizer):
    """Momentum made orthogonal, matrix by matrix (https://kellerjordan.github.io/posts/muon/), and AdamW for the rest.

    An update is scaled by 0.2 times the root of the matrix's larger side, to the size of AdamW's (arXiv:2502.16982).
    So one learning rate and one weight decay serve all parameters, and those that AdamW was tuned to will do.

    Modules say which matrices are made orthogonal, by `orthogonalize`. Sharded ones are too, each as a whole, and the
    ranks share the work. The iteration runs in bfloat16, on CPUs in float32.

    Args:
        params: parameter groups.
        lr: learning rate of both.
        weight_decay: of both, decoupled.
        momentum: Nesterov's, of the matrices.
        ns_steps: steps of the Newton-Schulz iteration.
        betas: AdamW's.
        eps: AdamW's.

    Raises:
        UserError: a setting is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 2e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        ns_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        shares = {"momentum": momentum, "betas[0]": betas[0], "betas[1]": betas[1]}
        for name, value in {"lr": lr, "weight_decay": weight_decay, "eps": eps}.items():
            if not 0 <= value < math.inf:
                raise UserError(f"model.optimizer: Muon's {name}={value} is below 0.")
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise UserError(f"model.optimizer: Muon's {name}={value} is not in 0 <= {name} < 1.")
        if not 1 <= ns_steps <= 20:
            raise UserError(f"model.optimizer: Muon's ns_steps={ns_steps} is not in 1..20; 5 are usual.")
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "ns_steps": ns_steps, "betas": betas,
            "eps": eps,
        }  # fmt: skip
        super().__init__(params, defaults)
        self._matrices: set[int] = set()

    def orthogonalize(self, matrices: Iterable[Tensor]) -> None:
        """Take Muon for these of the parameters, each a matrix or a stack of them, and AdamW for all others.

        Raises:
            UserError: none of the parameters is among them.
        """
        own = {id(parameter) for group in self.param_groups for parameter in group["params"]}
        self._matrices = {id(parameter) for parameter in matrices} & own
        if not self._matrices:
            raise UserError(
                "model.optimizer: Muon makes updates of matrices orthogonal, and none of the trained parameters is a "
                "matrix of a block: the strategy keeps them as flat vectors, or only embeddings or vectors are "
                "trained. Take llm_lightning.strategies.FSDP2Strategy, or torch.optim.AdamW."
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the closure's loss."""
        if not self._matrices:
            raise RuntimeError("Muon was not told which matrices to make orthogonal: call orthogonalize(matrices).")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            self._step_matrices(group, [parameter for parameter in trained if id(parameter) in self._matrices])
            self._step_others(group, [parameter for parameter in trained if id(parameter) not in self._matrices])
        return loss

    def _step_matrices(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for numbers in batches(parameters):
            batch = [parameters[number] for number in numbers]
            updates = [self._momentum(parameter, group["momentum"]) for parameter in batch]
            for parameter, update in zip(batch, orthogonalize(updates, group["ns_steps"]), strict=True):
                size = 0.2 * math.sqrt(max(parameter.shape[-2:]))
                local(parameter).mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * size)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        """Nesterov's: the average of the gradients, one step ahead."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum_buffer"], momentum)

    def _step_others(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        if not parameters:
            return
        fused = all(parameter.device.type in FUSED and parameter.is_floating_point() for parameter in parameters)
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] |= {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu"),
                    "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter),
                }  # fmt: skip
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],  # type: ignore[misc]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=fused,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
