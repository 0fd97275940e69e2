"""From a network to every form of every bound, against dense matrices and hand-written compositions."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import DELTA, Layer, Network, reference
from torch import nn

import genbound

DTYPE, NUM_DATA, LOSS_RANGE = torch.float64, 240, 2.0
BOUNDS = ["neyshabur2018", "pitas2017", "bartlett2017", "long2020", "gouk2021", "li2021", "distance_spectral",
          "distance_two_one"]  # fmt: skip


class Residual(nn.Module):
    """A stem, a strided block with a projection, a block with an identity, a head; batch norm or none."""

    def __init__(self, norm: bool):
        super().__init__()
        for name, i, o, side, stride in (("stem", 2, 4, 3, 1), ("a", 4, 6, 3, 2), ("b", 6, 6, 3, 1), ("p", 4, 6, 1, 2),
                                         ("c", 6, 6, 3, 1)):  # fmt: skip
            setattr(self, name, nn.Conv2d(i, o, side, stride, side // 2, bias=False))
            setattr(self, f"norm_{name}", nn.BatchNorm2d(o) if norm else nn.Identity())
        self.head = nn.Linear(54, 3, bias=norm)

    def step(self, name, x):
        return getattr(self, f"norm_{name}")(getattr(self, name)(x))

    def forward(self, x):
        x = self.step("stem", x).relu()
        x = (self.step("b", self.step("a", x).relu()) + self.step("p", x)).relu()
        return self.head((x + self.step("c", x)).relu().flatten(1))


def effective(module, state, name, norm, run):
    """Kernel, unrolled matrix and bias of a layer, with what normalises it folded in."""
    kernel = state[f"{name}.weight"]
    shift = state.get(f"{name}.bias", torch.zeros(len(kernel), dtype=DTYPE))
    if f"{norm}.running_var" in state:
        scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + 1e-5)
        kernel = kernel * scale.view(-1, 1, 1, 1)
        shift = state[f"{norm}.bias"] - scale * state[f"{norm}.running_mean"]
    matrix = run(kernel)
    return matrix.numpy(), kernel.numpy(), shift.repeat_interleave(len(matrix) // len(shift)).numpy()


def layer(module, tuned, init, name, shape, norm="", **settings):
    """A layer of inputs ``[channels, rows, columns]`` or ``[inputs]``."""

    def run(kernel):
        if kernel.dim() == 2:
            return kernel
        units = torch.eye(math.prod(shape), dtype=DTYPE).reshape(-1, *shape)
        return F.conv2d(units, kernel, **settings).flatten(1).T

    (matrix, kernel, bias), (m0, k0, b0) = (effective(module, s, name, norm, run) for s in (tuned, init))
    return Layer(matrix, m0, kernel, k0, bias, b0, shape[0], shape[1:], settings.get("groups", 1))


def chain(layers, biased=False):
    def perturb(s, u, radius, b, t):
        size, change = radius, 0.0
        for i in range(len(layers)):
            size, change = s[i] * size + b[i], (s[i] + u[i]) * change + u[i] * size + t[i]
        return change

    def before(s, radius, b):
        sizes = [radius]
        for i in range(len(layers) - 1):
            sizes.append(s[i] * sizes[-1] + b[i])
        return sizes

    doubled = lambda s: 2 ** len(layers) * s.prod()  # noqa: E731

    def behind(s):
        return np.array([2 ** (len(layers) - 1 - i) * np.prod(s[i + 1 :]) for i in range(len(layers))])

    return Network(layers, lambda s: s.prod(), perturb, before, doubled, behind, True, biased)


def branches(layers, biased):
    def perturb(s, u, radius, b, t):
        def step(i, state):
            size, change = state
            return s[i] * size + b[i], (s[i] + u[i]) * change + u[i] * size + t[i]

        stem = step(0, (radius, 0.0))
        joined = np.add(step(2, step(1, stem)), step(3, stem))
        return step(5, np.add(joined, step(4, joined)))[1]

    def before(s, radius, b):
        stem = s[0] * radius + b[0]
        inner = s[1] * stem + b[1]
        joined = s[2] * inner + b[2] + s[3] * stem + b[3]
        return [radius, stem, inner, stem, joined, joined + s[4] * joined + b[4]]

    def constant(s):
        return s[0] * (s[1] * s[2] + s[3]) * (1 + s[4]) * s[5]

    def doubled(s):
        return 2 * s[0] * 2 * (4 * s[1] * s[2] + 2 * s[3]) * 2 * (1 + 2 * s[4]) * 2 * s[5]

    def behind(s):
        joined = 2 * 2 * (1 + 2 * s[4]) * 2 * s[5]
        return np.array([(4 * s[1] * s[2] + 2 * s[3]) * joined, 2 * s[2] * joined, joined, joined, 4 * s[5], 1.0])

    return Network(layers, constant, perturb, before, doubled, behind, False, biased)


def perceptron(biased):
    model = nn.Sequential(
        nn.Linear(7, 6, biased), nn.ReLU(), nn.Linear(6, 9, biased), nn.ReLU(), nn.Linear(9, 4, biased)
    )

    def describe(*states):
        sizes = (("0", 7), ("2", 6), ("4", 9))
        return chain([layer(model, *states, name, (size,)) for name, size in sizes], biased)

    return model, (7,), describe


def convolutional(_):
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), nn.ReLU(),
        nn.Conv2d(6, 4, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3, bias=False),
    )  # fmt: skip

    def describe(*states):
        return chain([
            layer(model, *states, "0", (2, 6, 8), stride=2, padding=1),
            layer(model, *states, "2", (4, 3, 4), padding=1, groups=2),
            layer(model, *states, "4", (6, 3, 4)),
            layer(model, *states, "7", (48,)),
        ])  # fmt: skip

    return model, (2, 6, 8), describe


def residual(norm):
    model = Residual(norm)

    def describe(*states):
        return branches([
            layer(model, *states, "stem", (2, 6, 6), "norm_stem", padding=1),
            layer(model, *states, "a", (4, 6, 6), "norm_a", stride=2, padding=1),
            layer(model, *states, "b", (6, 3, 3), "norm_b", padding=1),
            layer(model, *states, "p", (4, 6, 6), "norm_p", stride=2),
            layer(model, *states, "c", (6, 3, 3), "norm_c", padding=1),
            layer(model, *states, "head", (54,)),
        ], norm)  # fmt: skip

    return model, (2, 6, 6), describe


def inputs_of_layers(model, state, x):
    """Of the network with other weights, in the order of execution: ``[samples, width]``."""
    found, twin = [], copy.deepcopy(model)
    twin.load_state_dict(state)
    for module in twin.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, __: found.append(inputs[0].flatten(1).numpy()))
    with torch.no_grad():
        twin(x)
    return found


@pytest.mark.parametrize(
    ("build", "option"),
    [(perceptron, False), (perceptron, True), (convolutional, False), (residual, False), (residual, True)],
    ids=["perceptron", "with biases", "convolutions", "branches", "branches and batch norm"],
)
def test_every_form(build, option):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model, shape, describe = build(option)
        model = model.to(DTYPE).eval()
        x = torch.randn(40, *shape, dtype=DTYPE)
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5) if "var" in name else buffer.normal_(0, 0.3)
        init = {name: value.clone() for name, value in model.state_dict().items()}
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.03 * torch.rand_like(value))
    with torch.no_grad():
        scores = model(x)
    labels = scores.argmax(1)
    best = scores.sort(1).values
    margin = float(np.percentile((best[:, -1] - best[:, -2]).numpy(), 5))
    network = describe(model.state_dict(), init)
    hidden = inputs_of_layers(model, init, x)
    expected = reference(network, x.numpy(), margin, NUM_DATA, LOSS_RANGE, math.sqrt(2), hidden)

    names = dict(model.named_parameters())
    problem = genbound.Problem(
        model, {n: init[n] for n in names}, (x, labels), num_data=NUM_DATA, loss_range=f"clip:{LOSS_RANGE}",
        init_buffers={n: b for n, b in init.items() if n not in names} or None,
    )  # fmt: skip
    results = genbound.evaluate(problem, BOUNDS, delta=DELTA)
    for bound, forms in expected.items():
        found = results.bounds[bound]["forms"]
        for form, value in forms.items():
            assert found[form]["log10"] is not None, (bound, form, found[form])
            assert 10 ** found[form]["log10"] == pytest.approx(value, rel=1e-7), (bound, form)
        others = set(found) - set(forms) - {"literal", "epsilon_grid"}
        assert all(found[form]["log10"] is None and found[form]["note"] for form in others), (bound, others)
