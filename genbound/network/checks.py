"""What a forward pass and a loss must keep to, tried on a few samples before anything is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genbound.data.sample_parts import Inputs, counted
from genbound.data.samples import Batch
from genbound.errors import GenboundError
from genbound.network.derivative_trial import is_large
from genbound.network.forward import describe
from genbound.network.kept_values import as_they_were
from genbound.network.label_losses import fitted
from genbound.network.loss_functions import MULTI_LABEL, SQUARED_ERROR, Loss
from genbound.network.refusals import TAKE_OUT_INFERENCE, refused_by_torch
from genbound.user_code import rng_untouched

if TYPE_CHECKING:
    from genbound.network.network import Network


def check_forward(network: Network, loss: Loss) -> tuple[Tensor, Loss]:
    """Refuse a moving target: passes over the same samples must agree, draw no random numbers and keep samples apart.

    Args:
        network: whose passes can be run.
        loss: that its outputs are for.

    Returns:
        The output of the first N <= 4 samples (two of a large network), ``[N, ...]``, and the loss for labels of their
        form.

    Raises:
        GenboundError: the network cannot run on its samples, or its outputs or losses are no function of each sample.
    """
    positions = network.spread_run(2 if is_large(network) else 4)
    batch, singles = network.batch(positions), [network.batch([p]) for p in positions]
    with torch.no_grad(), rng_untouched():
        state = torch.get_rng_state()
        network.arrange(_run(network, batch), batch.targets, loss)
        with as_they_were(network.model):  # the second meets what the first has kept
            outputs, again = _run(network, batch), _run(network, batch)
        if outputs.is_inference():
            raise GenboundError(TAKE_OUT_INFERENCE)
        drew = not torch.equal(state, torch.get_rng_state())
        _check_outputs(outputs, len(positions))
        _check_repeats(outputs, again, drew)
        _check_apart(outputs, batch, singles, _run_alone(network, singles))
        _check_modes(network, batch, outputs)
    loss = fitted(loss, outputs, batch.targets, network.flat)
    check_loss(loss, outputs, batch.targets)
    return outputs, loss


def check_loss(loss: Loss, outputs: Tensor, targets: Tensor) -> None:
    """Refuse labels that do not fit the ``outputs [N, ...]``, and a loss that is not one number for each sample."""
    if loss in (SQUARED_ERROR, MULTI_LABEL) and outputs.numel() != targets.numel():
        raise GenboundError(
            f"labels of shape {tuple(targets.shape)} do not fit outputs of shape {tuple(outputs.shape)}: {loss.name} "
            "needs a label for every output; class numbers are for --loss cross_entropy"
        )
    loss.check_targets(outputs, targets)
    try:
        losses = loss.per_sample(outputs, targets)
    except Exception as error:
        raise GenboundError(
            f"the loss {loss.name} cannot be computed: {type(error).__name__}: {error} (outputs {describe(outputs)}, "
            f"labels {describe(targets)}); choose another --loss or check the labels"
        ) from error
    if losses.shape != (len(outputs),):
        raise GenboundError(
            f"the loss {loss.name} gives shape {tuple(losses.shape)} for {len(outputs)} samples: it must give one "
            "number for each sample (no mean over the batch)"
        )
    _check_loss_apart(loss, outputs, targets, losses)


def _check_loss_apart(loss: Loss, outputs: Tensor, targets: Tensor, losses: Tensor) -> None:
    """A sample's loss must be the same alone, and beside one that the network answers otherwise."""
    size = 1e-4 * max(1e-3, float(losses.detach().abs().max()))
    for k in range(len(outputs)):
        own, target = outputs[k : k + 1], targets[k : k + 1]
        for others in ([], [-own]):
            num = 1 + len(others)
            found = loss.per_sample(torch.cat([own, *others]), torch.cat([target] * num))
            if found.shape != (num,) or not torch.allclose(found[0], losses[k], rtol=1e-4, atol=size):
                raise GenboundError(
                    f"the loss {loss.name} of a sample depends on the others in its batch (alone it is another): "
                    "per-sample quantities do not exist for such a loss; give one that looks at each sample by itself "
                    "(no batch mean, no contrast within the batch, no division by its size)"
                )


def _run(network: Network, batch: Batch) -> Tensor:
    try:
        return network.forward(network.params, batch.inputs)
    except GenboundError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        config = getattr(network.model, "config", None)
        raise GenboundError(
            f"the model cannot run on the data: {type(error).__name__}: {reason} (inputs {describe(batch.inputs)}); "
            + _mend(reason, config, batch.inputs)
        ) from error


def _mend(reason: str, config: Any, inputs: Inputs) -> str:
    """What to do about a model, of this config of transformers or ``None``, that cannot run on its samples."""
    tokens = inputs.get("input_ids") if isinstance(inputs, dict) else None
    most = getattr(config, "max_position_embeddings", None)
    if isinstance(tokens, Tensor) and isinstance(most, int) and tokens.shape[-1] > most:
        return f"the model has {most} positions: cut texts to them with max_length={most} behind the data, after '?'"
    if "<eos>" in reason:
        return (
            "this model answers at the end token: let every text end with it (eos_token_id of config.json), as its own "
            "tokenizer does, or append it to input_ids"
        )
    if getattr(config, "is_encoder_decoder", False):
        return "this model has a decoder of its own: give decoder_input_ids as well, with --data FILE.py:function"
    return "check that data and model belong together"


def _check_modes(network: Network, batch: Batch, outputs: Tensor) -> None:
    """The network must be the same one with gradients, without them, and in inference mode."""
    moving = {name: p.detach().requires_grad_(p.is_floating_point()) for name, p in network.params.items()}
    for mode, what in ((torch.enable_grad, "with gradients"), (torch.inference_mode, "in inference mode")):
        try:
            with mode():
                found = network.forward(moving if mode is torch.enable_grad else network.params, batch.inputs)
        except Exception as error:
            raise GenboundError(
                refused_by_torch(error)
                or f"the model runs without gradients and not {what}: {type(error).__name__}: {error}; is there an "
                "operation on the weights in place in its forward?"
            ) from error
        close = found.shape == outputs.shape and torch.allclose(
            found.detach(), outputs, rtol=1e-4, atol=1e-5 * max(1.0, float(outputs.abs().max()))
        )
        if not close:
            raise GenboundError(
                f"the model computes something else {what} than without: two networks would be measured; does it ask "
                "torch.is_grad_enabled() or take a fused operation? Make its evaluation mode one function"
            )


def _run_alone(network: Network, singles: list[Batch]) -> list[Tensor]:
    """Each sample's output in a pass of its own."""
    try:
        return [network.forward(network.params, single.inputs)[0] for single in singles]
    except Exception as error:
        raise GenboundError(
            f"the model runs on {len(singles)} samples and not on one alone: {type(error).__name__}: {error}; "
            "is a BatchNorm layer kept in training mode, so that samples influence each other?"
        ) from error


def _check_outputs(outputs: Tensor, num: int) -> None:
    if not torch.isfinite(outputs).all():
        raise GenboundError("the model's output is not finite on the first samples: check the weights and inputs")
    if outputs.shape[:1] != (num,):
        raise GenboundError(
            f"the model's output has shape {tuple(outputs.shape)} for {num} samples: its first axis must be the samples"
        )


def _check_repeats(outputs: Tensor, again: Tensor, drew: bool) -> None:
    if drew:
        raise GenboundError(
            "the model's forward pass stays random in evaluation mode (it draws random numbers): "
            "use nn.Dropout modules or guard the noise by self.training"
        )
    if not torch.allclose(outputs, again, rtol=1e-5, atol=1e-6 * max(1.0, float(outputs.abs().max()))):
        raise GenboundError(
            "two forward passes over the same samples differ: the model keeps state between calls; "
            "make its evaluation mode a function of weights and inputs alone"
        )


def _check_apart(outputs: Tensor, batch: Batch, singles: list[Batch], alone: list[Tensor]) -> None:
    """Samples that share a pass must not influence each other."""
    size = 1e-3 * max(1.0, float(outputs.abs().max()))
    for k, (single, own) in enumerate(zip(singles, alone, strict=True)):
        # A sample alone has no padding: sequences are compared where they are labelled.
        shared, own = counted(outputs[k], batch.targets[k]), counted(own, single.targets[0])
        if shared.shape == own.shape and not torch.allclose(shared, own, rtol=1e-3, atol=size):
            raise GenboundError(
                "the samples of a batch influence each other (a sample alone gives another output): "
                "per-sample quantities do not exist for such a model; is a BatchNorm layer kept in training mode? "
                "If it is the padding that the model does not mask, measure with --batch-size 1"
            )
