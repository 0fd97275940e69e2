r"""The one object that everything measures: a network with its layers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genbound.data.samples import Samples, as_samples, same_inputs
from genbound.errors import GenboundError
from genbound.estimators.choice import Choice
from genbound.estimators.random import BLOCK
from genbound.network.derivative_checks import check_derivatives
from genbound.network.displacement import Displacement
from genbound.network.identity import answers, network_digests
from genbound.network.layers import Layer, candidates_for, select_layers
from genbound.network.loss_functions import Loss
from genbound.network.memory import budget_of, give_back, largest_batch
from genbound.network.network import Network
from genbound.network.own_modes import own_modes
from genbound.network.placement import DeviceMap
from genbound.network.prior import Prior, adapter_remark
from genbound.network.refusals import refusals
from genbound.network.tape import Tape
from genbound.network.weights import BaseProblem, complex_remark, parts_remark, tables_remark

SHARD = 64  # samples whose statistics are stored together


# Remarks of results.
HALF = (
    "measured in {}, which keeps three digits of every weight and of every pass: numbers may be off by several percent"
)
OTHER_SAMPLES = (
    "the samples given are not of the training set: what is called training loss and training error is theirs, and so "
    "are all maxima and means"
)


class Problem(Network, BaseProblem):
    r"""A fine-tuned network, its initialisation and the data it is measured on.

    Args:
        model: any ``nn.Module`` holding the fine-tuned weights. It is run in evaluation mode and left as it was.
        init: the pretrained weights, ``name -> tensor``, for every name of ``model.named_parameters()``.
        data: the training samples: a :class:`~genbound.data.samples.Samples`, a torch ``Dataset``, an iterable of
            batches ``(inputs, labels)`` or dicts, or a pair of tensors.
        loss: a name (``cross_entropy``, ``squared_error``, ``multi_label``), a
            :class:`~genbound.network.loss_functions.Loss`, or a per-sample function ``(outputs, targets) -> [N]``.
        num_data: size ``n`` of the training set if ``data`` holds only part of it, or other samples.
        other_samples: ``data`` is not of the training set (held-out samples, say): bounds keep the ``num_data`` of the
            training set, which must be given. ``data_sem`` still speaks of ``num_data`` samples.
        loss_range: ``observed``, ``clip:C`` or ``bounded:PMIN`` (see :mod:`genbound.network.loss_functions`).
        test_data: held-out samples, for the generalization gap.
        num_samples: how many of the training samples the quantities are measured on; ``None`` means all.
            A random subset is drawn from ``sample_seed``.
        layers: pattern of layer names to measure (``*`` wildcards, comma separated); names embeddings explicitly.
        head: names of the parameters that form the output head (for tables, and for ``paper_code``).
        excluded: names of parameters that are not layers (an excluded head).
        dtype: floating-point type to measure in; ``None`` keeps the model's.
        device: where to measure.
        device_map: in place of ``device``, to spread the weights over several: ``auto`` over all accelerators, or name
            of a module -> device.
        batch_size: most samples in one forward pass. Changes results by rounding only.
        memory_budget: bytes that a pass and the weights may take (on each device): the batch size is reduced to what
            they hold. ``None`` means half of the machine's (the accelerator's) memory.
        provenance: what the numbers belong to, copied into the results.
        init_buffers: the pretrained model's buffers (running statistics), those it has; the model's own stand in for
            the others.
        factors: weights whose displacement is known as ``left [out, r] @ right [r, in]`` (adapters): it is kept so.
        output: name or place of the scores, where the model returns several tensors (``logits``, ``1``).
        prior: what certificates are centred at in place of ``init``: parameters and buffers by name.
        prior_samples: places in the data of the training samples that ``prior`` saw.
        prior_factors: likewise ``factors``, of the displacement of ``prior`` from ``init``.
        prior_choices: from how many priors ``prior`` was chosen after the other samples had been seen: which tensors
            may move is a choice of the prior. Certificates pay its logarithm.
        unlabelled: inputs that training never saw, for certificates of the network itself; labels are not looked at.
        copy_weights: see :class:`~genbound.network.network.Network`.

    Attributes:
        prior: the centre of certificates, ``None`` where it is the start.
        layers: the weights that are measured, in the order of ``model.named_parameters()``.
        samples_first: layer -> order of the rows of the operations that use it.
        displacement: layer -> fine-tuned minus pretrained weight.
        memory_budget: bytes that a pass, the weights and the vectors of recursions may take; of several devices that of
            the smallest.
        remarks: what a reader of every number must know of the network.
        choice: how the measured samples stand for the data, where they were not drawn alike; else ``None``.
        sample_seed: what they are drawn from.

    Raises:
        GenboundError: weights, data or model cannot be measured; the message says why and what would mend it.

    Example:
        >>> import torch, genbound
        >>> model = torch.nn.Linear(3, 2)
        >>> init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        >>> problem = genbound.Problem(model, init, (torch.randn(8, 3), torch.arange(8) % 2))
        >>> [layer.name for layer in problem.layers]
        ['weight']
    """

    # Of a problem with a network there is always:
    params: dict[str, Tensor]
    init: Mapping[str, Tensor]
    buffers: dict[str, Tensor]
    init_buffers: dict[str, Tensor]
    data: Samples
    indices: list[int]
    loss: Loss
    num_classes: int
    batch_size: int
    choice: Choice | None = None
    _shares: np.ndarray | None = None  # of a part

    @own_modes()
    @refusals()
    def __init__(
        self,
        model: nn.Module,
        init: Mapping[str, Tensor],
        data: Any,
        loss: str | Loss = "cross_entropy",
        *,
        num_data: int | None = None,
        other_samples: bool = False,
        loss_range: str = "observed",
        test_data: Any = None,
        num_samples: int | None = None,
        sample_seed: int = 0,
        layers: str | Iterable[str] | None = None,
        head: Sequence[str] = (),
        excluded: Sequence[str] = (),
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        device_map: str | DeviceMap | None = None,
        batch_size: int = BLOCK,
        memory_budget: int | None = None,
        provenance: Mapping[str, Any] | None = None,
        init_buffers: Mapping[str, Tensor] | None = None,
        factors: Mapping[str, tuple[Tensor, Tensor]] | None = None,
        output: str | int | None = None,
        prior: Mapping[str, Tensor] | None = None,
        prior_samples: Iterable[int] | None = None,
        prior_factors: Mapping[str, tuple[Tensor, Tensor]] | None = None,
        prior_choices: int | None = None,
        unlabelled: Any = None,
        copy_weights: bool = True,
    ):
        super().__init__(
            model, init, data, loss, loss_range=loss_range, num_samples=num_samples, sample_seed=sample_seed,
            dtype=dtype, device=device, device_map=device_map, batch_size=batch_size, init_buffers=init_buffers,
            output=output, copy_weights=copy_weights,
        )  # fmt: skip
        self.sample_seed = int(sample_seed)
        self.test_data: Samples | None = None if test_data is None else as_samples(test_data)
        self.unlabelled: Samples | None = None if unlabelled is None else as_samples(unlabelled)
        if self.unlabelled is not None and same_inputs(self.unlabelled, self.data):
            raise GenboundError("the unlabelled samples are the training samples: give inputs that training never saw")
        self.other_samples = bool(other_samples)
        self.num_data = len(self.data) if num_data is None else int(num_data)
        if other_samples and num_data is None:
            raise GenboundError("num_data is missing: of samples outside the training set, n is not their number")
        if self.num_data < len(self.data) and not other_samples:
            raise GenboundError(
                f"num_data {self.num_data} is smaller than the {len(self.data)} samples given: n is the size of the "
                "training set; of samples outside it say other_samples=True"
            )
        choices = 1 if prior_choices is None else prior_choices
        self.prior = None if prior is None else Prior.of(self, prior, prior_samples, prior_factors, choices)
        if prior is None and prior_samples is not None:
            raise GenboundError("samples of a prior are given and no prior: which weights saw them?")
        self.head, self.provenance = tuple(head), dict(provenance or {})
        self.layers: tuple[Layer, ...] = select_layers(self, layers, excluded)
        self.samples_first = {layer.name: layer.samples_first for layer in self.layers}
        names = [layer.name for layer in self.layers]
        whose = OTHER_SAMPLES if other_samples else ""
        # Of weights that a pattern names, the others are left out by choice.
        tables = () if layers else set(candidates_for(self.params, (), excluded)) - set(names)
        said = (
            self.placement.remark, *check_derivatives(self, names), self.arrangement_remark,
            complex_remark(self.params, self.init), tables_remark(sorted(tables), self.params, self.init),
            parts_remark(self.layers, self.params), whose, self._of_few(),
            HALF.format(self.dtype) if self.dtype.itemsize < 4 else "",
        )  # fmt: skip
        self.remarks = tuple(remark for remark in said if remark)
        self._by_batch = {layer.name: layer.by_batch for layer in self.layers}
        self.displacement = self._displacement(init, factors)
        self.remarks += tuple(filter(None, [adapter_remark(self.prior, self.displacement.factors)]))
        self._budgets = {device: budget_of(device, memory_budget) for device in self.placement.devices}
        self.memory_budget = min(self._budgets.values())
        self.batch_size = largest_batch(self, self.samples_first, self.budgets)
        give_back(self)

    @property
    def budgets(self) -> dict[torch.device, int]:
        """What a pass and the weights may take on each device, in bytes."""
        return self._budgets if len(self._budgets) > 1 else {self.device: self.memory_budget}

    @property
    def shares(self) -> np.ndarray:
        """How much each measured sample counts in a mean over the data, in units of the average one ``[N]``."""
        if self._shares is not None:
            return self._shares
        return np.ones(self.num_samples) if self.choice is None else self.choice.shares

    def measured_on(self, choice: Choice) -> Problem:
        """The same problem with these samples of the data measured: other positions, the same indices."""
        found = copy.copy(self)
        found.choice = choice.ordered(self.order_of(choice.members.tolist()))
        found.indices = found.choice.members.tolist()
        return found

    def order_of(self, indices: Sequence[int]) -> list[int]:
        """Places of these samples of the data in the order of positions: of their length, so that batches are even."""
        return sorted(range(len(indices)), key=lambda i: (self.data.size(indices[i]), i))

    def _of_few(self) -> str:
        """A remark where nothing says how far the mean of the samples is from that of all."""
        if self.num_samples > 1 or self.num_data == 1:
            return ""
        return f"one sample of {self.num_data} is measured: no error here says how far the others are from it"

    def _displacement(
        self, init: Mapping[str, Tensor], factors: Mapping[str, tuple[Tensor, Tensor]] | None
    ) -> Displacement:
        """From the weights as they are measured, but of half types from those that were given."""
        own = dict(self.model.named_parameters())
        if self.dtype.itemsize >= 4 or not own.keys() <= init.keys():
            return Displacement.between(self.params, self.init, self.samples_first, factors)
        given = {name: own[name].detach().to(self.params[name].device) for name in self.samples_first}
        return Displacement.between(given, init, self.samples_first, factors, self.dtype)

    def part(self, positions: range) -> Problem:
        """The same problem with some of the measured samples, which count as they do among all of them.

        They stand for as large a part of the training set as all of them do; where those were chosen by size, for
        themselves alone.
        """
        found, num = copy.copy(self), len(positions)
        found.indices, found.choice = self.indices[positions.start : positions.stop], None
        found._shares = self.shares[positions.start : positions.stop]
        found.num_data = num if self.choice is not None else -(-num * self.num_data // self.num_samples)
        return found

    def over_all(self) -> Problem:
        """The same problem with all samples of the data measured: other positions, the same indices."""
        whole = copy.copy(self)
        whole.choice = None
        whole.indices = sorted(range(len(self.data)), key=lambda i: (self.data.size(i), i))
        return whole

    def shards(self) -> list[range]:
        """Runs of measured samples, as positions, whose statistics are stored together."""
        return [range(s, min(s + SHARD, self.num_samples)) for s in range(0, self.num_samples, SHARD)]

    def blocks(self, positions: Sequence[int]) -> list[tuple[int, list[int]]]:
        """The positions grouped by block of random numbers: ``(block, positions)``."""
        groups: dict[int, list[int]] = {}
        for p in positions:
            groups.setdefault(p // BLOCK, []).append(p)
        return list(groups.items())

    def tape(self, positions: Sequence[int], layers: Sequence[str] | None = None) -> Tape:
        """One forward pass over the samples at these positions, for derivatives in the layers (``None``: all of them).

        Raises:
            GenboundError: the samples cannot share a pass for a layer for which the first ones could.
        """
        names = [layer.name for layer in self.layers] if layers is None else layers
        tape = Tape(self, positions, {name: self.samples_first[name] for name in names})
        for name in tape.layers:
            # The first samples decided which layers share a pass; a use that only shows later must not.
            if self._by_batch[name] and tape.needs_single_samples(name):
                raise GenboundError(
                    f"layer {name} is used by other operations for some samples than for the first ones: "
                    "measure with --batch-size 1"
                )
        return tape

    def tapes(self, positions: Sequence[int], layers: Sequence[str] | None = None) -> Iterator[Tape]:
        """Forward passes that cover the positions for all the layers.

        A layer whose samples cannot share a pass (see :class:`~genbound.network.weight_uses.LeafUse`) gets passes of
        one sample; the others share passes of ``batch_size``.
        """
        names = [layer.name for layer in self.layers] if layers is None else list(layers)
        shared = [name for name in names if self._by_batch[name]]
        single = [name for name in names if not self._by_batch[name]]
        for group, size in ((shared, self.batch_size), (single, 1)):
            if group:
                for run in self.batches(positions, size):
                    yield self.tape(run, group)

    def digests(self) -> dict[bool, str]:
        """SHA-256 of everything that a measurement depends on; ``True`` counts held-out samples in."""
        return network_digests(self)

    def answers(self) -> dict[str, np.ndarray]:
        """What the network says to a few samples (:func:`~genbound.network.identity.answers`)."""
        return answers(self)
