"""Counting the multiplications that are done, by operations of torch."""

import math

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import genbound
from genbound.evaluation import loop


class Multiplications(TorchDispatchMode):
    """Two for each multiplication inside, with its addition.

    As of torch's FlopCounterMode, which takes every other operation apart, in many times the time, and counts too many
    for convolutions with groups, backwards.
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, operation = func(*args, **(kwargs or {})), func._overloadpacket
        if operation is torch.ops.aten.convolution_backward:
            gradient, _, weight = args[:3]
            self.total += 2 * gradient.numel() * math.prod(weight.shape[1:]) * sum(args[-1][:2])
        elif operation in flop_registry:
            self.total += flop_registry[operation](*args, **(kwargs or {}), out_val=out)
        return out


def taken(problem, monkeypatch, options=None):
    """Quantity -> gradients over the measured samples that an evaluation takes for it."""
    with Multiplications() as counted:
        for run in problem.batches(range(problem.num_samples)):
            tape = problem.tape(run)
            torch.autograd.grad(tape.losses.sum(), [w for name, w in tape.weights.items() if tape.uses[name]])
    unit, found, measure = counted.total, {}, loop.measure_stages

    def measured(problem, context):
        with Multiplications() as counted:
            result = measure(problem, context)
        found[context.name] = counted.total / unit
        return result

    monkeypatch.setattr(loop, "measure_stages", measured)
    genbound.evaluate(problem, options=options)
    return found
