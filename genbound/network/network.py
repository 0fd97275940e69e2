r"""What can be run: the weights of a network, the samples, the loss, and one forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from genbound.data.sample_parts import leaves, map_tensors
from genbound.data.samples import Batch, Samples, as_samples
from genbound.errors import GenboundError
from genbound.estimators.all_finite import all_finite
from genbound.estimators.even_runs import even_runs
from genbound.estimators.random import BLOCK
from genbound.network import displacement
from genbound.network.checks import check_forward
from genbound.network.device_map import AUTO, accelerators, place
from genbound.network.forward import call_arguments, evaluation_mode, scores
from genbound.network.label_losses import arrangement
from genbound.network.layers_by_shape import modules_in_order
from genbound.network.loss_functions import Loss, get_loss, ranged
from genbound.network.placement import DeviceMap, Placement
from genbound.network.plain_functions import PlainFunctions
from genbound.network.plain_operations import plain_operations
from genbound.network.weights_by_need import WeightsByNeed

COMPILED = "_orig_mod"  # what torch.compile calls the module in its own


class Network:
    r"""A fine-tuned network, the weights it started from, its loss, and the samples that it is run on.

    A *position* counts the samples that are measured, from 0 to ``num_samples - 1``; an *index* counts the whole
    data set.

    Args:
        model: any ``nn.Module`` holding the fine-tuned weights. It is run in evaluation mode and left as it was.
        init: the pretrained weights, ``name -> tensor``, for every name of ``model.named_parameters()``.
        data: the samples, in any form that :func:`~genbound.data.samples.as_samples` takes.
        loss: a name, a :class:`~genbound.network.loss_functions.Loss`, or a per-sample function
            ``(outputs, targets) -> [N]``.
        loss_range: ``observed``, ``clip:C`` or ``bounded:PMIN`` (see :func:`~genbound.network.loss_functions.ranged`).
        num_samples: how many of the samples are measured, drawn from ``sample_seed``; ``None`` means all.
        dtype: floating-point type of weights and inputs; ``None`` keeps the model's, but for half precision.
        device: where passes run.
        device_map: in place of ``device``, to spread the weights over several: ``auto``, or name of a module -> device
            (:mod:`genbound.network.device_map`).
        batch_size: most samples in one forward pass.
        init_buffers: the pretrained model's buffers, those it has; the model's own stand in for the others.
        output: name or place of the scores, where the model returns several tensors.
        copy_weights: of weights that are in ``dtype`` on ``device`` already, too. Without, nobody may change them as
            long as the network is measured.

    Attributes:
        params, init: name -> fine-tuned and pretrained weight, detached, in ``dtype``, on ``device`` or where
            ``device_map`` puts it; copies unless ``copy_weights`` is false.
        placement: which device each weight is on. ``device`` is then the one where scores and labels meet.
        versions: name -> how often the weight had been written to when the network was made.
        buffers, init_buffers: name -> buffer of the fine-tuned and the pretrained model, likewise.
        borrowed_buffers: names of the pretrained buffers that the fine-tuned model's stand in for.
        indices: position -> index, in order of the samples' length, so that a batch of sequences is hardly padded.
        num_outputs: numbers in one sample's output.
        num_classes: size of the output's last axis.
        flat: the model gives one number a sample, without an axis for it.
        arrangement_remark: which of two axes was taken for the classes, where both fit.

    Raises:
        GenboundError: weights, data or model cannot be measured; the message says why and what would mend it.

    Cost: two forward passes over at most four samples, and one over each of them alone.
    """

    def __init__(
        self,
        model: nn.Module,
        init: Mapping[str, Tensor],
        data: Any,
        loss: str | Loss = "cross_entropy",
        *,
        loss_range: str = "observed",
        num_samples: int | None = None,
        sample_seed: int = 0,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        device_map: str | DeviceMap | None = None,
        batch_size: int = BLOCK,
        init_buffers: Mapping[str, Tensor] | None = None,
        output: str | int | None = None,
        copy_weights: bool = True,
    ):
        if batch_size < 1:
            raise GenboundError(f"batch size {batch_size} is not positive")
        if isinstance(init, nn.Module):
            raise GenboundError("init is a module: give the pretrained weights by name, as its state_dict() has them")
        model, init = _uncompiled(model, init)
        _refuse_wrapped(model)
        self.model, self.batch_size, self.output = model, int(batch_size), output
        self.data: Samples = as_samples(data)
        if len(self.data) == 0:
            raise GenboundError("the data are empty: nothing can be measured; check the data SPEC")
        self.indices = sorted(_choose(len(self.data), num_samples, sample_seed), key=lambda i: (self.data.size(i), i))
        _check_weights(model, init)
        self.dtype = _measured_dtype(model) if dtype is None else dtype
        self.placement = self._placed(device, device_map)
        self.device = self.placement.home
        self.params = {name: self._moved(p.detach(), name, copy_weights) for name, p in model.named_parameters()}
        self.init = self._initial(init, copy_weights)
        self.versions = {name: p._version for name, p in self.params.items()}
        self.buffers = {name: self._moved(b.detach(), name, True) for name, b in model.named_buffers()}
        self.init_buffers, self.borrowed_buffers = _init_buffers(self.buffers, init_buffers or {})
        self._functions: PlainFunctions | None = PlainFunctions()
        self._arranged: Callable[[Tensor], Tensor] | None = None
        self.flat, self.arrangement_remark = False, ""
        # Passes can be run from here on; the loss is limited in its range once the number of classes is seen.
        outputs, given = check_forward(self, get_loss(loss))
        if not self._functions.replaced:  # watching every function for nothing would cost time
            self._functions = None
        self.num_outputs, self.num_classes = outputs[0].numel(), outputs.shape[-1]
        self.loss_range_spec, self.loss = loss_range, ranged(given, loss_range, self.num_classes)

    def _initial(self, init: Mapping[str, Tensor], copy: bool) -> Mapping[str, Tensor]:
        """The pretrained weights: in the type that is measured in, or of a large network as they are stored."""
        stored = {name: init[name].detach() for name in self.params}
        size = sum(p.numel() * p.element_size() for p in self.params.values())
        if not copy and size > displacement.KEPT:
            return WeightsByNeed(stored, self._moved)
        return {name: self._moved(tensor, name, copy) for name, tensor in stored.items()}

    def _placed(self, device: str | torch.device, device_map: str | DeviceMap | None) -> Placement:
        """Where the weights go; for ``auto`` in the order in which a sample meets them."""
        order: Sequence[str] = ()
        if device_map == AUTO and len(accelerators()) > 1:
            order = modules_in_order(self.model, self.data.batch(self.indices[:1]))
        return place(self.model, device, device_map, order)

    def _moved(self, tensor: Tensor, name: str = "", copy: bool = False) -> Tensor:
        """A tensor in the type that is measured in, on the device of the weight or buffer of this name."""
        return self._cast(tensor, self.placement.of(name), copy)

    def _cast(self, tensor: Tensor, device: torch.device, copy: bool = False) -> Tensor:
        dtype = self.dtype if tensor.is_floating_point() else None
        # A tensor that was made under torch.inference_mode cannot be in any record; a copy can.
        return tensor.to(device=device, dtype=dtype, copy=copy or tensor.is_inference())

    # -- samples ----------------------------------------------------------------------------------------------

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices that weights are on, in the order in which the model has them."""
        return self.placement.devices

    @property
    def num_samples(self) -> int:
        """How many samples the quantities are measured on."""
        return len(self.indices)

    def batch(self, positions: Sequence[int]) -> Batch:
        """The samples at these positions, stacked in this order, on the network's device and in its type."""
        return self.to_device(self.data.batch([self.indices[p] for p in positions]))

    def largest(self) -> Batch:
        """The largest of the measured samples, alone: what grows with a sample's size is largest there."""
        each = (self.data.batch([i]) for i in self._shapes().values())
        return self.to_device(max(each, key=lambda one: sum(tensor.numel() for _, tensor in leaves(one.inputs))))

    def alike(self) -> bool:
        """Whether the measured samples have one shape; to look at all that were given would mean to read them all."""
        return len(self._shapes()) == 1

    def _shapes(self) -> dict[Hashable, int]:
        """Shape -> the index of a measured sample that has it."""
        return {(self.data.size(i), self.data.shape_key(i)): i for i in reversed(self.indices)}

    def to_device(self, batch: Batch) -> Batch:
        """A batch of any samples, held-out ones too, on the network's device and in its type.

        Over several devices the inputs go where a pass begins.
        """
        inputs = map_tensors(batch.inputs, lambda tensor: self._cast(tensor, self.placement.first))
        return Batch(inputs=inputs, targets=self._moved(batch.targets), indices=batch.indices)

    def batches(self, positions: Sequence[int], size: int | None = None) -> Iterator[list[int]]:
        """The positions in runs that fit one forward pass: at most ``size`` samples, all stackable."""
        size, key = size or self.batch_size, None
        run: list[int] = []
        for p in positions:
            k = self.data.shape_key(self.indices[p])
            if run and (len(run) == size or k != key):
                yield run
                run = []
            run.append(p)
            key = k
        if run:
            yield run

    def even_batches(self, positions: Sequence[int], size: int | None = None) -> Iterator[list[int]]:
        """As :meth:`batches`, of positions in any order, and in runs of samples so alike in length that few are padded.

        That pays where the passes take much, and few samples of all lengths are left.
        """
        for group in self.batches(sorted(positions), max(1, len(positions))):
            lengths = [self.data.size(self.indices[p]) for p in group]
            for places in even_runs(lengths, size or self.batch_size):
                yield [group[i] for i in places]

    def shared_run(self, most: int) -> list[int]:
        """Up to ``most`` positions that share a pass: at least two if two can be stacked, whatever the batch size."""
        run: list[int] = []
        for run in self.batches(range(self.num_samples), max(2, min(most, self.batch_size))):
            if len(run) > 1:
                return run
        return run

    def spread_run(self, most: int) -> list[int]:
        """As :meth:`shared_run`, from the first position to the last where these can be stacked.

        Sequences stand in order of length: the first few of them may need no padding, and say nothing about it. Where
        samples are passed one at a time nothing is padded, and these are of one length.
        """
        if self.batch_size == 1:
            run = self.shared_run(most)
            return [p for p in run if self.data.size(self.indices[p]) == self.data.size(self.indices[run[0]])]
        last, count = self.num_samples - 1, max(2, min(most, self.batch_size))
        places = sorted({round(last * k / (count - 1)) for k in range(count)})
        if len(places) > 1 and len({self.data.shape_key(self.indices[p]) for p in places}) == 1:
            return places
        return self.shared_run(most)

    # -- the forward pass -------------------------------------------------------------------------------------

    def forward(self, params: Mapping[str, Tensor], inputs: Any, buffers: Mapping[str, Tensor] | None = None) -> Tensor:
        """The network's output at the given weights, in evaluation mode.

        What torch has a fused, compiled or recomputed form of runs in its plain one, with gradients and without: it is
        the one that has second derivatives on every device (:mod:`genbound.network.plain_operations`,
        :mod:`genbound.network.plain_functions`).

        Args:
            params: name -> weight, for every name of :attr:`params`.
            inputs: of a :class:`~genbound.data.samples.Batch` of N samples.
            buffers: name -> buffer; ``None`` means those of the fine-tuned model.

        Returns:
            The scores, ``[N, ...]``, in the model's own unit (for cross-entropy: logits ``[N, ..., classes]``, wherever
            the model has its classes; ``[N, 1]`` of a model that gives one number a sample), laid out in memory in the
            order of their axes: a model may end in a view, and what follows counts on no stride.
        """
        args, kwargs = call_arguments(inputs)
        functions = self._functions or contextlib.nullcontext()
        with evaluation_mode(self.model), plain_operations(), functions, self.placement.moving(self.model):
            output = functional_call(
                self.model, {**params, **(self.buffers if buffers is None else buffers)}, args, kwargs
            )
        found = scores(output, self.output).to(self.device)
        return (found if self._arranged is None else self._arranged(found)).contiguous()

    def arrange(self, outputs: Tensor, targets: Tensor, loss: Loss) -> None:
        """From here on, let passes give ``[N, ..., K]`` with the classes last, judging by a few samples.

        Args:
            outputs: of these samples, as the model gives them.
            targets: their labels.
            loss: that was asked for.
        """
        self.flat = outputs.dim() == 1
        self._arranged, self.arrangement_remark = arrangement(loss, outputs, targets)

    def state(self, other: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole network by the names of the model's state, a shared tensor under each of its names.

        Args:
            other: parameters and buffers that are not those of the fine-tuned network, by name.
        """
        named = (*self.model.named_parameters(), *self.model.named_buffers())
        known, now = {id(tensor): name for name, tensor in named}, {**self.params, **self.buffers, **other}
        stored = self.model.state_dict(keep_vars=True)
        return {name: now[known[id(tensor)]] for name, tensor in stored.items() if id(tensor) in known}


def _choose(total: int, wanted: int | None, seed: int) -> list[int]:
    if wanted is None or wanted >= total:
        return list(range(total))
    if wanted < 1:
        raise GenboundError(f"cannot measure {wanted} samples: ask for at least 1")
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(total, generator=generator)[:wanted].tolist())


def _uncompiled(model: nn.Module, init: Mapping[str, Tensor]) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """The module that ``torch.compile`` has wrapped, and the initial weights by the names that it has for them."""
    model = getattr(model, COMPILED, model)
    plain = {name.replace(f"{COMPILED}.", ""): tensor for name, tensor in init.items()}
    names = [name for name, _ in model.named_parameters() if name not in init]
    found = {name: plain[bare] for name in names if (bare := name.replace(f"{COMPILED}.", "")) in plain}
    return model, {**init, **found} if found else init


def _refuse_wrapped(model: nn.Module) -> None:
    """Refuse modules that cannot be run at other weights than their own."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise GenboundError(
            f"the model is wrapped in {type(model).__name__}: give model.module, and the initial weights by its names"
        )
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise GenboundError(
            "the model is scripted or traced, and cannot be run at other weights than its own: give the module that it "
            "was made of, and load its state_dict there"
        )


def _check_weights(model: nn.Module, init: Mapping[str, Tensor]) -> None:
    """Refuse weights that lack their counterpart, do not fit it, or are damaged."""
    params = dict(model.named_parameters())
    if not params:
        raise GenboundError("the model has no parameters: nothing can be measured")
    missing = [name for name in params if name not in init]
    if missing:
        raise GenboundError(
            f"the initialisation lacks {len(missing)} of the model's weights ({', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}): give zeros for a head that was new"
        )
    for name, p in params.items():
        if tuple(init[name].shape) != tuple(p.shape):
            raise GenboundError(
                f"weight {name} has shape {tuple(p.shape)} in the model and {tuple(init[name].shape)} in the "
                "initialisation"
            )
        for what, tensor in (("fine-tuned", p), ("initial", init[name])):
            if tensor.is_floating_point() and not all_finite(tensor):
                raise GenboundError(f"{what} weight {name} has NaN or infinite entries: the checkpoint is damaged")


def _measured_dtype(model: nn.Module) -> torch.dtype:
    """The model's own type; single precision in place of a half one, whose rounding is larger than what is measured."""
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return own if own in (torch.float32, torch.float64) else torch.float32


def _init_buffers(
    buffers: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], frozenset[str]]:
    """The pretrained model's buffers, and the names of those that the fine-tuned model's stand in for."""
    fitting = {name for name, b in buffers.items() if name in given and given[name].shape == b.shape}
    for name in fitting:
        if given[name].is_floating_point() and not all_finite(given[name]):
            raise GenboundError(f"initial buffer {name} has NaN or infinite entries: the checkpoint is damaged")
    found = {
        name: given[name].detach().to(device=b.device, dtype=b.dtype, copy=True) if name in fitting else b
        for name, b in buffers.items()
    }
    return found, frozenset(buffers) - fitting
