"""Which layers a network has, from the shapes of its weights alone: a forward pass of tensors without numbers.

torch's *fake* tensors have a shape, a type and a device, and no memory. A pass of them executes and records what a pass
of numbers does, in seconds for any size. What only numbers tell is left open: whether the samples of a pass influence
each other, whose rows are whose, and whether derivatives are those of what is computed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.func import functional_call

from genbound.data.sample_parts import map_tensors
from genbound.data.samples import Batch
from genbound.errors import GenboundError, first_line
from genbound.network.forward import call_arguments, evaluation_mode, scores
from genbound.network.layers import Layer, candidates_for, fixed_tables, layers_in, patterns
from genbound.network.plain_functions import PlainFunctions
from genbound.network.plain_operations import plain_operations
from genbound.network.read_pass import ReadPass


def layers_by_shape(
    model: nn.Module,
    batch: Batch,
    convex: bool,
    *,
    pattern: str | Iterable[str] | None = None,
    excluded: Sequence[str] = (),
    output: str | int | None = None,
) -> tuple[tuple[Layer, ...], torch.Size]:
    """The layers of a model, and the shape of its outputs ``[N, ...]``.

    Args:
        model: whose weights and buffers are not looked at; they may lie in a file that is mapped into memory.
        batch: N samples.
        convex: the loss is convex in the output.
        pattern, excluded: as for :func:`~genbound.network.layers.select_layers`.
        output: as for :class:`~genbound.network.network.Network`.

    Raises:
        GenboundError: the forward pass asks for numbers, or cannot run on the data.
    """
    wanted, params = patterns(pattern), dict(model.named_parameters())
    names = candidates_for(params, wanted, excluded)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    held = _without_numbers(mode, {**params, **dict(model.named_buffers())})
    weights = {name: held[name].requires_grad_() for name in names}
    try:
        with mode, torch.enable_grad():
            outputs = scores(_run(model, mode, held, batch), output)
            reading = ReadPass(outputs, weights, dict.fromkeys(names, True), len(batch.indices), convex)
            found = layers_in(reading, wanted, dict.fromkeys(names, True), fixed=fixed_tables(model))
            return found, outputs.shape
    except GenboundError:
        raise
    except Exception as error:
        raise GenboundError(_said(error)) from error


def modules_in_order(model: nn.Module, batch: Batch) -> list[str]:
    """Names of the modules in the order in which a forward pass first runs them, as far as it gets without numbers."""
    mode, order = FakeTensorMode(allow_non_fake_inputs=True), dict[str, None]()
    held = _without_numbers(mode, {**dict(model.named_parameters()), **dict(model.named_buffers())})
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            handle = module.register_forward_pre_hook(lambda *_, name=name: order.setdefault(name))
            stack.callback(handle.remove)
        stack.enter_context(contextlib.suppress(Exception))  # a model that looks at numbers: the order so far
        with mode, torch.no_grad():
            _run(model, mode, held, batch)
    return list(order)


def _without_numbers(mode: FakeTensorMode, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: _like(mode, tensor) for name, tensor in tensors.items()}


def _like(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    # In single precision in place of a half one, as it would be measured.
    half = tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64)
    with mode:
        return torch.empty(tensor.shape, dtype=torch.float32 if half else tensor.dtype)


def _run(model: nn.Module, mode: FakeTensorMode, held: Mapping[str, Tensor], batch: Batch) -> Any:
    """What the model returns for weights without numbers."""
    args, kwargs = call_arguments(map_tensors(batch.inputs, lambda tensor: _like(mode, tensor)))
    with evaluation_mode(model), plain_operations(), PlainFunctions():
        return functional_call(model, dict(held), args, kwargs)


def _said(error: Exception) -> str:
    """Why a pass without numbers failed."""
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        what: Any = f"asks for numbers ({first_line(error)})"
    else:
        what = f"does not run without numbers ({type(error).__name__}: {first_line(error)})"
    return f"the model's forward pass {what}: inspect it without --no-weights"
