r"""A linear head whose weight and bias alone moved: noise on them moves the scores by a Gaussian that is known.

With features :math:`\tilde x`, the scores of noisy weights are :math:`N(z, A \Sigma A^\top)`, where A stacks what each
score takes from the head's tensors. For two classes the probability of a wrong answer is
:math:`\Phi(-(z_y - z_o)/s)` with :math:`s^2` the variance of :math:`z_y - z_o`: no draw is needed. Where s is 0 (a
sample without features, and a bias that stayed) the answer is always that of the scores as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genbound.data.samples import Batch
from genbound.errors import GenboundError

if TYPE_CHECKING:
    from genbound.network.problem import Problem
    from genbound.posterior.groups import Group
    from genbound.posterior.noise import Posterior


@dataclass(frozen=True)
class LinearHead:
    """The last module of a network, if it is linear and all that moved.

    Attributes:
        problem: whose network.
        module: the head.
        weight, bias: names of its tensors that moved, empty for one that did not.
    """

    problem: Problem
    module: nn.Linear
    weight: str
    bias: str

    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """``(features [N, in], scores [N, out])`` of a batch, at the fine-tuned weights, in float64."""
        features, outputs = _run(self.problem, self.module, batch.inputs)
        if len(features) != 1 or not torch.equal(_applied(self.problem, self.module, features[0], {}), outputs):
            raise GenboundError(
                f"the scores of sample {batch.indices[0]} or one beside it are not the linear head's alone: leave out "
                "gibbs_error, whose closed form does not hold for them"
            )
        return features[0].double(), outputs.double()

    def error_probability(self, batch: Batch, posterior: Posterior) -> Tensor:
        """Probability of a wrong answer of every sample ``[N]``, for two classes."""
        features, scores = self.features(batch)
        label = batch.targets.long()
        sign = 1.0 - 2.0 * label.double()  # +1 where class 0 is right: its score less the other's is the margin
        margin = sign * (scores[:, 0] - scores[:, 1])
        variance = torch.zeros_like(margin)
        if self.weight:
            direction = torch.stack([features, -features], 1).flatten(1)
            variance += (direction * posterior.covariance_action(self.weight, direction)).sum(1)
        if self.bias:
            direction = features.new_tensor([1.0, -1.0]).expand(len(features), 2)
            variance += (direction * posterior.covariance_action(self.bias, direction)).sum(1)
        found = torch.special.ndtr(-margin / variance.clamp(min=1e-300).sqrt())
        # Of equal scores that nothing moves the first is taken, every time: no half.
        return torch.where(variance > 0, found, (scores.argmax(1) != label).double())


def find_linear_head(problem: Problem, groups: Sequence[Group]) -> LinearHead | None:
    """The linear head that is all that moved, ``None`` where something else did or the scores are not its own."""
    modules = {id(p): (module, key) for module in problem.model.modules() if isinstance(module, nn.Linear)
               for key, p in module._parameters.items() if p is not None}  # fmt: skip
    owners = dict(problem.model.named_parameters())
    found = [modules.get(id(owners[group.name])) if group.name in owners else None for group in groups]
    if not found or any(owner is None or owner[0] is not found[0][0] for owner in found):
        return None
    module = found[0][0]
    names = {owner[1]: group.name for owner, group in zip(found, groups, strict=True)}
    features, outputs = _run(problem, module, problem.batch(problem.shared_run(2)).inputs)
    if len(features) != 1 or features[0].dim() != 2:
        return None
    if not torch.equal(_applied(problem, module, features[0], {}), outputs):
        return None
    # Its weights are used nowhere else: where they are other ones, the features stay and the scores are theirs.
    stream = torch.Generator().manual_seed(0)
    others = {
        name: p + torch.randn(p.shape, generator=stream, dtype=p.dtype).to(p.device)
        for name, p in problem.params.items() if name in _names(problem, module).values()
    }  # fmt: skip
    moved, scores = _run(problem, module, problem.batch(problem.shared_run(2)).inputs, others)
    if not torch.equal(moved[0], features[0]) or not torch.equal(_applied(problem, module, moved[0], others), scores):
        return None
    return LinearHead(problem, module, names.get("weight", ""), names.get("bias", ""))


def _applied(problem: Problem, module: nn.Module, features: Tensor, others: Mapping[str, Tensor]) -> Tensor:
    """The head's scores of features; some of its weights may be others."""
    weights = {key: {**problem.params, **others}[name] for key, name in _names(problem, module).items()}
    return F.linear(features, weights["weight"], weights.get("bias"))


def _names(problem: Problem, module: nn.Module) -> dict[str, str]:
    """Weight and bias of the module by their names in the network."""
    known = {id(p): name for name, p in problem.model.named_parameters()}
    return {key: known[id(p)] for key, p in module._parameters.items() if p is not None}


def _run(
    problem: Problem, module: nn.Module, inputs: Any, others: Mapping[str, Tensor] = MappingProxyType({})
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    """What the module was given, once for each call, and the network's outputs; some weights may be others."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    try:
        with torch.no_grad():
            outputs = problem.forward({**problem.params, **others}, inputs)
    finally:
        handle.remove()
    return seen, outputs
