"""The slow truth: dense Hessians of tiny networks, written from the definitions.

Nothing of genbound is imported here. A *block* is the Hessian of one sample's loss in one weight, all else fixed; it is
taken by ``torch.func.hessian`` through ``functional_call``, in float64.
"""

import copy

import torch
from torch import Tensor
from torch.func import functional_call, hessian
from torch.nn.attention import SDPBackend, sdpa_kernel


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Of one sample; a sequence of labels counts as the mean over those that are not -100."""
    log_p = output - output.logsumexp(-1, keepdim=True)
    if target.dim() == 0:
        return -log_p[target]
    places = (target != -100).nonzero().flatten()
    return -torch.stack([log_p[i, target[i]] for i in places.tolist()]).mean()


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    return ((output.reshape(-1) - target.reshape(-1)) ** 2).sum()


def multi_label(output: Tensor, target: Tensor) -> Tensor:
    p = torch.sigmoid(output)
    return -(target * p.log() + (1 - target) * (1 - p).log()).mean()


def bounded(p_min: float):
    def loss(output: Tensor, target: Tensor) -> Tensor:
        p = torch.softmax(output, -1)[target]
        return -torch.log(p_min + (1 - output.shape[-1] * p_min) * p)

    return loss


def clipped(ceiling: float):
    def loss(output: Tensor, target: Tensor) -> Tensor:
        value = cross_entropy(output, target)
        return value if value < ceiling else value * 0 + ceiling

    return loss


class Truth:
    """Blocks, losses and everything that follows from them, for some layers and all samples.

    Args:
        model: any module; a copy in evaluation mode and float64 is used.
        init: name -> initial weight.
        inputs: list of one sample's inputs each, without the batch axis (a tensor or a dict).
        targets: list of one sample's target each.
        loss: (output of one sample, target) -> scalar.
        layers: names of the weights.
    """

    def __init__(self, model, init, inputs, targets, loss, layers):
        self.model = copy.deepcopy(model).double().eval()
        self.params = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.buffers = dict(self.model.named_buffers())
        self.inputs, self.targets, self.loss, self.layers = inputs, targets, loss, list(layers)
        self.v = {name: (self.params[name] - init[name].double()).flatten() for name in self.layers}
        self._blocks: dict[str, Tensor] = {}

    def sample_loss(self, i: int, params=None) -> Tensor:
        inputs = self.inputs[i]
        params = {**self.params, **(params or {})}
        with sdpa_kernel(SDPBackend.MATH):
            if isinstance(inputs, dict):
                kwargs = {key: value.unsqueeze(0) for key, value in inputs.items()}
                output = functional_call(self.model, {**params, **self.buffers}, (), kwargs)
            else:
                output = functional_call(self.model, {**params, **self.buffers}, (inputs.unsqueeze(0),))
        output = getattr(output, "logits", output)
        return self.loss(output[0], self.targets[i])

    def blocks(self, name: str) -> Tensor:
        """``[N, d, d]``."""
        if name not in self._blocks:
            weight, found = self.params[name], []
            for i in range(len(self.inputs)):

                def function(w, i=i):
                    return self.sample_loss(i, {name: w.view(weight.shape)})

                found.append(_hessian(function, weight.flatten()))
            self._blocks[name] = torch.stack(found)
        return self._blocks[name]

    def losses(self) -> Tensor:
        with torch.no_grad():
            return torch.stack([self.sample_loss(i) for i in range(len(self.inputs))])

    def traces(self, name: str) -> Tensor:
        return self.blocks(name).diagonal(dim1=1, dim2=2).sum(1)

    def positive_traces(self, name: str) -> Tensor:
        return torch.linalg.eigvalsh(_symmetric(self.blocks(name))).clamp(min=0).sum(1)

    def smallest_eigenvalue(self, name: str) -> float:
        return float(torch.linalg.eigvalsh(_symmetric(self.blocks(name))).min())

    def forms(self, name: str) -> Tensor:
        """``v^T H v`` of every sample."""
        return torch.einsum("i,nij,j->n", self.v[name], self.blocks(name), self.v[name])

    def positive_forms(self, name: str) -> Tensor:
        """``v^T H^+ v`` of every sample."""
        values, vectors = torch.linalg.eigh(_symmetric(self.blocks(name)))
        return ((self.v[name] @ vectors) ** 2 * values.clamp(min=0)).sum(1)

    def joint_hessian_of_mean(self, indices) -> tuple[Tensor, dict[str, slice]]:
        """Hessian of the mean loss over some samples in all layers together, and where each layer lies in it."""
        sizes = [self.params[name].numel() for name in self.layers]
        ends = torch.tensor(sizes).cumsum(0).tolist()
        where = {n: slice(e - s, e) for n, s, e in zip(self.layers, sizes, ends, strict=True)}

        def function(flat):
            params = {n: flat[where[n]].view(self.params[n].shape) for n in self.layers}
            return torch.stack([self.sample_loss(i, params) for i in indices]).mean()

        return _hessian(function, torch.cat([self.params[n].flatten() for n in self.layers])), where


def _hessian(function, point: Tensor) -> Tensor:
    return hessian(function)(point).detach()


def _symmetric(blocks: Tensor) -> Tensor:
    return 0.5 * (blocks + blocks.mT)
