"""Two sets of weights: what every problem says of them, and the problem that has nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from genbound.formatting import few
from genbound.network.displacement import Displacement
from genbound.network.identity import weights_digest
from genbound.network.layers import Layer, candidates_for, patterns

if TYPE_CHECKING:
    from genbound.data.samples import Samples
    from genbound.network.loss_functions import Loss


class BaseProblem:
    """What a problem answers, whether there is a network to run or not.

    The values given here are those of a problem without a network.

    Attributes:
        params, init: name -> fine-tuned and pretrained weight, detached.
        buffers, init_buffers: name -> buffer of the fine-tuned and the pretrained model.
        layers: the weights that count as layers.
        displacement: layer -> ``params - init``.
        head: names of the weights that form the output head.
        provenance: what the numbers belong to, copied into the results.
        reason: why nothing is measured that needs a network or samples; empty where both are there.
        data, test_data: training and held-out samples, ``None`` where there are none.
        indices: the samples that are measured, by their places in ``data``.
        num_data: size n of the training set.
        loss: ``None`` without a network.
        loss_range_spec: how the range of the loss is known: ``observed``, ``clip:C`` or ``bounded:PMIN``.
        num_classes: size of the output's last axis.
        dtype, device: of the tensors that are measured.
        batch_size: most samples in one forward pass.
        remarks: what a reader of every number must know of the network.
    """

    params: Mapping[str, Tensor]
    init: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor] = MappingProxyType({})
    init_buffers: Mapping[str, Tensor] = MappingProxyType({})
    layers: tuple[Layer, ...]
    displacement: Displacement
    provenance: dict[str, Any]
    head: tuple[str, ...] = ()
    reason: str = ""
    data: Samples | None = None
    test_data: Samples | None = None
    indices: Sequence[int] = ()
    num_data: int = 0
    loss: Loss | None = None
    loss_range_spec: str = "observed"
    num_classes: int | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    batch_size: int | None = None
    remarks: tuple[str, ...] = ()

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices that something is measured on."""
        return (self.device,)

    @property
    def num_samples(self) -> int:
        """How many samples are measured."""
        return len(self.indices)

    def digests(self) -> dict[bool, str]:
        """SHA-256 of everything that a measured number depends on beside its own options and the seed.

        ``True`` is that of numbers which depend on the held-out samples too. Cost: a look at all samples.
        """
        return dict.fromkeys((False, True), weights_digest(self))

    def digest(self, test_data: bool = False) -> str:
        """One of :meth:`digests`."""
        return self.digests()[test_data]

    def answers(self) -> dict[str, np.ndarray]:
        """What is compared before stored parts are used, name -> numbers of any shape; nothing without a network."""
        return {}


def as_array(weight: Tensor) -> np.ndarray:
    """A weight for numpy, which has no bfloat16: float32 holds every one of its values."""
    return (weight.float() if weight.dtype is torch.bfloat16 else weight).cpu().numpy()


def complex_remark(params: Mapping[str, Tensor], init: Mapping[str, Tensor]) -> str:
    """A sentence about the complex weights that moved, which no number contains; empty where there are none."""
    moved = _moved((name for name, p in params.items() if p.is_complex()), params, init)
    return f"complex weights are no layers, and these moved: {few(moved)}; no number contains that" if moved else ""


def tables_remark(tables: Iterable[str], params: Mapping[str, Tensor], init: Mapping[str, Tensor]) -> str:
    """A sentence about the tables of vectors that moved, which no layer's number contains; empty where none did."""
    moved = _moved(tables, params, init)
    if not moved:
        return ""
    return (
        f"weights that are only looked up, or added or joined to what the network computes (as embeddings are), are no "
        f"layers, and these moved: {few(moved)}; no layer's number contains that, and --layers takes them in"
    )


def _moved(names: Iterable[str], params: Mapping[str, Tensor], init: Mapping[str, Tensor]) -> list[str]:
    return [name for name in names if not torch.equal(params[name].detach(), init[name].to(params[name]))]


def parts_remark(layers: Iterable[Layer], params: Mapping[str, Tensor]) -> str:
    """A sentence about layers that are no weights of the network, which computes those from them; empty without any.

    Weight and spectral normalisation, pruning and whatever else is registered as a parametrization, old or new.
    """
    parts = [layer.name for layer in layers if _is_part(layer.name, params)]
    if not parts:
        return ""
    more = ", …" if len(parts) > 3 else ""
    return (
        f"{len(parts)} of the layers ({', '.join(parts[:3])}{more}) are what the network computes its weights from: "
        "distances and norms are theirs, not those of the weights"
    )


def _is_part(name: str, params: Mapping[str, Tensor]) -> bool:
    stem, _, ending = name.rpartition("_")
    others = {"g": f"{stem}_v", "v": f"{stem}_g", "mask": f"{stem}_orig"}
    return ".parametrizations." in f".{name}" or ending == "orig" or others.get(ending) in params


class WeightProblem(BaseProblem):
    """Two sets of weights without a network: what can be said of weights alone can be measured.

    Args:
        params: name -> fine-tuned weight; those that are no floating-point numbers are left out.
        init: name -> pretrained weight of the same shape.
        reason: why there is no network, for the notes of what is not measured.
        provenance: what the numbers belong to.
        factors: weights whose displacement is known as ``left [out, r] @ right [r, in]``.
        layers, excluded: as of :class:`~genbound.network.problem.Problem`.

    Raises:
        GenboundError: no weight has two dimensions.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        init: Mapping[str, Tensor],
        reason: str,
        provenance: Mapping[str, Any] | None = None,
        factors: Mapping[str, tuple[Tensor, Tensor]] | None = None,
        layers: str | Iterable[str] | None = None,
        excluded: Sequence[str] = (),
    ):
        self.reason, self.provenance = reason, dict(provenance or {})
        self.params = {name: p.detach() for name, p in params.items() if p.is_floating_point()}
        self.init = {name: init[name].detach() for name in self.params}
        self.layers = tuple(
            Layer(name, "weight", tuple(self.params[name].shape), 0, False, "unknown", False, True)
            for name in candidates_for(self.params, patterns(layers), excluded)
        )
        said = complex_remark(params, init), parts_remark(self.layers, params)
        self.remarks = tuple(remark for remark in said if remark)
        names = [layer.name for layer in self.layers]
        self.displacement = Displacement.between(self.params, self.init, names, factors, torch.float64)
