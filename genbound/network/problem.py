r"""The one object that everything measures: a network, its loss, where its weights came from, and the samples."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from genbound.data.sample_parts import counted, map_tensors
from genbound.data.samples import Batch, Samples, as_samples
from genbound.errors import GenboundError
from genbound.estimators.random import BLOCK
from genbound.network.displacement import Displacement
from genbound.network.forward import (
    PlainWeightNorm,
    call_arguments,
    describe,
    evaluation_mode,
    has_weight_norm,
    scores,
)
from genbound.network.layers import Layer, select_layers
from genbound.network.loss_functions import Loss, bounded_cross_entropy, clipped, get_loss
from genbound.network.memory import largest_batch
from genbound.network.tape import Tape
from genbound.version import __version__

SHARD = 64  # samples whose statistics are stored together


class Problem:
    r"""A fine-tuned network, its initialisation and the data it is measured on.

    Args:
        model: any ``nn.Module`` holding the fine-tuned weights. It is run in evaluation mode and left as it was.
        init: the pretrained weights, ``name -> tensor``, for every name of ``model.named_parameters()``.
        data: the training samples: a :class:`~genbound.data.samples.Samples`, a torch ``Dataset``, an iterable of batches
            ``(inputs, labels)`` or dicts, or a pair of tensors.
        loss: a name (``cross_entropy``, ``squared_error``, ``multi_label``), a :class:`~genbound.network.loss_functions.Loss`, or
            a per-sample function ``(outputs, targets) -> [N]``.
        num_data: size ``n`` of the training set if ``data`` holds only part of it.
        loss_range: ``observed``, ``clip:C`` or ``bounded:PMIN`` (see :mod:`genbound.network.loss_functions`).
        test_data: held-out samples, for the generalization gap.
        num_samples: how many of the training samples the quantities are measured on; ``None`` means all.
            A random subset is drawn from ``sample_seed``.
        layers: pattern of layer names to measure (``*`` wildcards, comma separated); names embeddings explicitly.
        head: names of the parameters that form the output head (for tables, and for ``paper_code``).
        dtype: floating-point type to measure in; ``None`` keeps the model's.
        device: where to measure.
        batch_size: most samples in one forward pass. Changes results by rounding only.
        memory_budget: bytes that a pass and the weights may take: the batch size is reduced to what they hold. ``None`` means
            half of the machine's (the accelerator's) memory.
        provenance: what the numbers belong to, copied into the results.
        init_buffers: the pretrained model's buffers (running statistics), those it has; the model's own stand in for
            the others.
        factors: weights whose displacement is known as ``left [out, r] @ right [r, in]`` (adapters): it is kept so.

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

    def __init__(
        self,
        model: nn.Module,
        init: Mapping[str, Tensor],
        data: Any,
        loss: str | Loss = "cross_entropy",
        *,
        num_data: int | None = None,
        loss_range: str = "observed",
        test_data: Any = None,
        num_samples: int | None = None,
        sample_seed: int = 0,
        layers: str | None = None,
        head: Sequence[str] = (),
        excluded: Sequence[str] = (),
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        batch_size: int = BLOCK,
        memory_budget: int | None = None,
        provenance: Mapping[str, Any] | None = None,
        init_buffers: Mapping[str, Tensor] | None = None,
        factors: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ):
        if batch_size < 1:
            raise GenboundError(f"batch size {batch_size} is not positive")
        self.model, self.device, self.batch_size = model, _device(device), int(batch_size)
        self.provenance = dict(provenance or {})
        self.head = tuple(head)
        self.data: Samples = as_samples(data)
        self.test_data: Samples | None = None if test_data is None else as_samples(test_data)
        if len(self.data) == 0:
            raise GenboundError("the data are empty: nothing can be measured; check the data SPEC")
        self.num_data = len(self.data) if num_data is None else int(num_data)
        if self.num_data < len(self.data):
            raise GenboundError(
                f"num_data {self.num_data} is smaller than the {len(self.data)} samples given: n is the size of the training set"
            )
        # In order of length, so that a batch of sequences is hardly padded.
        self.indices = sorted(_choose(len(self.data), num_samples, sample_seed), key=lambda i: (self.data.size(i), i))
        self.params, self.buffers, self.init = _weights(model, init, dtype, self.device)
        self.init_buffers, self.borrowed_buffers = _init_buffers(self.buffers, init_buffers or {})
        self.dtype = next(p.dtype for p in self.params.values() if p.is_floating_point())
        self.loss_range_spec = loss_range
        self.loss = get_loss(loss)
        self._operations = PlainWeightNorm if has_weight_norm(model) else contextlib.nullcontext
        self._check_forward()
        self.loss = self._ranged(self.loss, loss_range)
        found = select_layers(self, layers, excluded)
        known = {name: tuple(self._move(f) for f in pair) for name, pair in (factors or {}).items()}
        self.layers: tuple[Layer, ...] = found
        self._layers = {layer.name: layer for layer in found}
        self.displacement = Displacement(
            {
                layer.name: (self.params[layer.name] - self.init[layer.name]).detach()
                for layer in found
                if layer.name not in known
            },
            {layer.name: known[layer.name] for layer in found if layer.name in known},
        )
        self.batch_size = largest_batch(self, self.batch_size, memory_budget)

    # -- samples ----------------------------------------------------------------------------------------------

    @property
    def num_samples(self) -> int:
        """How many samples the quantities are measured on."""
        return len(self.indices)

    def batch(self, positions: Sequence[int]) -> Batch:
        return self.to_device(self.data.batch([self.indices[p] for p in positions]))

    def to_device(self, batch: Batch) -> Batch:
        inputs = map_tensors(batch.inputs, self._move)
        return Batch(inputs=inputs, targets=self._move(batch.targets), indices=batch.indices)

    def _move(self, tensor: Tensor) -> Tensor:
        dtype = self.dtype if tensor.is_floating_point() else None
        return tensor.to(device=self.device, dtype=dtype)

    def shards(self) -> list[range]:
        """Runs of measured samples whose statistics are stored together."""
        return [range(s, min(s + SHARD, self.num_samples)) for s in range(0, self.num_samples, SHARD)]

    def blocks(self, positions: Sequence[int]) -> list[tuple[int, list[int]]]:
        """The positions grouped by block of random numbers: ``(block, positions)``."""
        groups: dict[int, list[int]] = {}
        for p in positions:
            groups.setdefault(p // BLOCK, []).append(p)
        return list(groups.items())

    def batches(self, positions: Sequence[int], size: int | None = None) -> Iterator[list[int]]:
        """The positions in runs that fit one forward pass: at most ``size`` samples, all stackable."""
        size, run, key = size or self.batch_size, [], None
        for p in positions:
            k = self.data.shape_key(self.indices[p])
            if run and (len(run) == size or k != key):
                yield run
                run = []
            run.append(p)
            key = k
        if run:
            yield run

    def shared_run(self, most: int) -> list[int]:
        """Up to ``most`` samples that share a pass, at least two whatever the batch size; one only if no two can be stacked."""
        run: list[int] = []
        for run in self.batches(range(self.num_samples), max(2, min(most, self.batch_size))):
            if len(run) > 1:
                return run
        return run

    # -- the network ------------------------------------------------------------------------------------------

    def forward(self, params: Mapping[str, Tensor], inputs: Any, buffers: Mapping[str, Tensor] | None = None) -> Tensor:
        """The network's output for a batch of inputs at the given weights (and buffers), in evaluation mode.

        Attention runs in its plain form: it is the one that has second derivatives on every device.
        """
        args, kwargs = call_arguments(inputs)
        with evaluation_mode(self.model), sdpa_kernel(SDPBackend.MATH), self._operations():
            output = functional_call(
                self.model, {**params, **(self.buffers if buffers is None else buffers)}, args, kwargs
            )
        return scores(output)

    def tape(self, positions: Sequence[int], layers: Sequence[str] | None = None) -> Tape:
        names = [layer.name for layer in self.layers] if layers is None else list(layers)
        tape = Tape(self, positions, names)
        for name in names:
            # What was found on the first samples decided which layers share a pass; a use that only shows later must not.
            known = getattr(self, "_layers", {}).get(name)
            if known is not None and known.by_batch and tape.needs_single_samples(name):
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
        shared = [name for name in names if self._layers[name].by_batch]
        single = [name for name in names if not self._layers[name].by_batch]
        for group, size in ((shared, self.batch_size), (single, 1)):
            if group:
                for run in self.batches(positions, size):
                    yield self.tape(run, group)

    def samples_first(self, name: str) -> bool:
        layers = getattr(self, "_layers", {})  # not yet there while the layers are being found
        return layers[name].samples_first if name in layers else self._trial_order

    _trial_order = True

    @contextlib.contextmanager
    def trial_order(self, samples_first: bool) -> Iterator[None]:
        """Read the rows of every operation in this order while the layers are being found."""
        self._trial_order = samples_first
        try:
            yield
        finally:
            self._trial_order = True

    # -- checks -----------------------------------------------------------------------------------------------

    def _check_forward(self) -> None:
        """Refuse a moving target: two passes over the same samples must agree and draw no random numbers."""
        first = self.shared_run(4)
        batch = self.batch(first)
        state = torch.get_rng_state()
        try:
            with torch.no_grad():
                a, b = self.forward(self.params, batch.inputs), self.forward(self.params, batch.inputs)
        except GenboundError:
            raise
        except Exception as error:
            raise GenboundError(
                f"the model cannot run on the data: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} "
                f"(inputs {describe(batch.inputs)}); "
                + (
                    "this model has a decoder of its own: give decoder_input_ids as well, with --data FILE.py:function"
                    if getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
                    else "check that data and model belong together"
                )
            ) from error
        drew = not torch.equal(state, torch.get_rng_state())
        torch.set_rng_state(state)
        if not torch.isfinite(a).all():
            raise GenboundError("the model's output is not finite on the first samples: check the weights and inputs")
        if a.shape[:1] != (len(first),):
            raise GenboundError(
                f"the model's output has shape {tuple(a.shape)} for {len(first)} samples: its first axis must be the samples"
            )
        close = torch.allclose(a, b, rtol=1e-5, atol=1e-6 * max(1.0, float(a.abs().max())))
        if drew:
            raise GenboundError(
                "the model's forward pass stays random in evaluation mode (it draws random numbers): "
                "use nn.Dropout modules or guard the noise by self.training"
            )
        if not close:
            raise GenboundError(
                "two forward passes over the same samples differ: the model keeps state between calls; "
                "make its evaluation mode a function of weights and inputs alone"
            )
        try:
            with torch.no_grad():
                singles = [self.batch([p]) for p in first]
                alone = [self.forward(self.params, single.inputs)[0] for single in singles]
        except Exception as error:
            raise GenboundError(
                f"the model runs on {len(first)} samples and not on one alone: {type(error).__name__}: {error}; "
                "is a BatchNorm layer kept in training mode, so that samples influence each other?"
            ) from error
        # A sample alone has no padding: sequences are compared where they are labelled.
        pairs = [(counted(a[k], batch.targets[k]), counted(alone[k], singles[k].targets[0])) for k in range(len(first))]
        size = 1e-3 * max(1.0, float(a.abs().max()))
        if any(x.shape == y.shape and not torch.allclose(x, y, rtol=1e-3, atol=size) for x, y in pairs):
            raise GenboundError(
                "the samples of a batch influence each other (a sample alone gives another output): "
                "per-sample quantities do not exist for such a model; is a BatchNorm layer kept in training mode? If it is the padding "
                "that the model does not mask, measure with --batch-size 1"
            )
        self._check_loss(a, batch.targets)
        self.num_outputs = a[0].numel()
        self.num_classes = a.shape[-1]

    def _check_loss(self, outputs: Tensor, targets: Tensor) -> None:
        self.loss.check_targets(outputs, targets)
        try:
            losses = self.loss.per_sample(outputs, targets)
        except Exception as error:
            raise GenboundError(
                f"the loss {self.loss.name} cannot be computed: {type(error).__name__}: {error} (outputs {describe(outputs)}, "
                f"labels {describe(targets)}); choose another --loss or check the labels"
            ) from error
        if losses.shape != (len(outputs),):
            raise GenboundError(
                f"the loss {self.loss.name} gives shape {tuple(losses.shape)} for {len(outputs)} samples: it must give one number "
                "for each sample (no mean over the batch)"
            )

    def _ranged(self, loss: Loss, spec: str) -> Loss:
        kind, _, argument = spec.partition(":")
        if kind == "observed" and not argument:
            return loss
        try:
            number = float(argument)
        except ValueError:
            number = math.nan
        if kind == "clip" and number == number:
            return clipped(loss, number)
        if kind == "bounded" and number == number:
            if not loss.classes:
                raise GenboundError(f"--loss-range {spec} needs a classification loss, not {loss.name}")
            return bounded_cross_entropy(number, self.num_classes)
        raise GenboundError(f"loss range {spec!r} is not understood: use observed, clip:C or bounded:PMIN")

    def digest(self, test_data: bool = False) -> str:
        """SHA-256 of everything that a measured number depends on beside its own options and the seed."""
        state = hashlib.sha256()
        for group in (self.params, self.buffers, self.init, self.init_buffers):
            for name, tensor in sorted(group.items()):
                state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        facts = (
            self.data.digest(), self.indices, self.num_data, self.loss.name, self.loss_range_spec,
            [layer.name for layer in self.layers], self.head, str(self.dtype), str(self.device), self.batch_size,
            self.test_data.digest() if test_data and self.test_data is not None else None,
            torch.__version__, torch.get_num_threads(), __version__, repr(self.model),
        )  # fmt: skip
        state.update(repr(facts).encode())
        return state.hexdigest()


def _device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise GenboundError(f"device {str(device)!r} cannot be used here: {reason}; use cpu") from error
    return found


def _choose(total: int, wanted: int | None, seed: int) -> list[int]:
    if wanted is None or wanted >= total:
        return list(range(total))
    if wanted < 1:
        raise GenboundError(f"cannot measure {wanted} samples: ask for at least 1")
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(total, generator=generator)[:wanted].tolist())


def _weights(model, init, dtype, device):
    """Detached copies of the fine-tuned and pretrained weights under the names of ``named_parameters()``."""
    params = {name: p.detach() for name, p in model.named_parameters()}
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
                f"weight {name} has shape {tuple(p.shape)} in the model and {tuple(init[name].shape)} in the initialisation"
            )
        for what, tensor in (("fine-tuned", p), ("initial", init[name])):
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise GenboundError(f"{what} weight {name} has NaN or infinite entries: the checkpoint is damaged")

    def moved(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device=device, dtype=dtype if tensor.is_floating_point() else None, copy=True)

    buffers = {name: moved(b) for name, b in model.named_buffers()}
    if dtype is None:  # half precision measures nothing: its rounding is larger than what is measured
        floating = next((p.dtype for p in params.values() if p.is_floating_point()), torch.float32)
        dtype = floating if floating in (torch.float32, torch.float64) else torch.float32
        buffers = {name: moved(b) for name, b in model.named_buffers()}
    return (
        {name: moved(p) for name, p in params.items()},
        buffers,
        {name: moved(init[name]) for name in params},
    )


def _init_buffers(
    buffers: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], frozenset[str]]:
    """The pretrained model's buffers, and the names of those that the fine-tuned model's stand in for."""
    fitting = {name for name, b in buffers.items() if name in given and given[name].shape == b.shape}
    for name in fitting:
        if given[name].is_floating_point() and not torch.isfinite(given[name]).all():
            raise GenboundError(f"initial buffer {name} has NaN or infinite entries: the checkpoint is damaged")
    found = {
        name: given[name].detach().to(device=b.device, dtype=b.dtype, copy=True) if name in fitting else b
        for name, b in buffers.items()
    }
    return found, frozenset(buffers) - fitting
