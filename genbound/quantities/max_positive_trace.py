r"""The largest :math:`\mathrm{Tr}\,H_i^+[\ell(f_W(x), y)]` over the samples, per layer's own block.

* A positive semidefinite block's trace is its Gauss-Newton trace: exact for every sample.
* A small block (or few samples) is formed densely, in the basis of the sample's own inputs, and decomposed: exact.
* A larger one is an **estimate**, and labelled so. Candidates are the samples with the largest traces and the largest
  spread of the trace probes; stochastic Lanczos quadrature narrows them down, fresh probes choose among the last ones, and
  fresh ones again measure the chosen sample (the maximum of noisy estimates would be biased upward). ``sem`` covers those
  last probes. A sample that was not a candidate may be larger: the value is a lower estimate of the maximum.

For the chosen sample the trace of :math:`f(H) = H^+` is taken as in Hutch++: exactly on a random subspace that captures the
large eigenvalues, by probes outside it; every quadratic form :math:`z^\top f(H) z` is a Gauss quadrature.

Cost:
    Exact blocks: nothing beyond ``hessian_trace``, or one double backward pass for each dimension of the block. Estimates:
    about 500 double backward passes of one sample for each layer.

References:
    Ubaru, Chen & Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIAM J. Matrix Anal. Appl., 2017.
    Meyer, Musco, Musco & Woodruff, Hutch++: optimal stochastic trace estimation, SOSA 2021.
"""

from __future__ import annotations

import numpy as np
import torch

from genbound.curvature.layer_block import LayerOperator, dense_blocks
from genbound.curvature.traces import gauss_newton_trace
from genbound.estimators.lanczos import Lanczos
from genbound.estimators.random import rademacher
from genbound.quantities.base import Context, Measured, Part, plain, stream
from genbound.quantities.catalogue.max_positive_trace import MaxPositiveTraceOptions

NAME = "max_positive_trace"


def _positive_traces(blocks: torch.Tensor) -> np.ndarray:
    return torch.linalg.eigvalsh(blocks).clamp(min=0).sum(1).cpu().numpy()


def _quadratures(operator: LayerOperator, starts: torch.Tensor, steps: int) -> np.ndarray:
    """``z^T H^+ z`` for each row."""
    run = Lanczos(operator.product, starts)
    for _ in range(min(steps, operator.dimension)):
        run.step(operator.precision)
    return np.array([run.positive_part(i) for i in range(len(starts))])


def _probes(operator: LayerOperator, shape, num: int, source) -> torch.Tensor:
    """Rademacher probes of the weight, seen in the operator's own basis: continuous in the inputs."""
    like = operator.tape.outputs.detach()
    return operator.start(rademacher((num, *shape), source, like)).reshape(num, -1).double()


def _copies(problem, name: str, position: int, num: int, by_batch: bool) -> list[list[int]]:
    size = problem.batch_size if by_batch else 1
    return [[position] * min(size, num - s) for s in range(0, num, size)]


class _Sample:
    """One sample's block, with many vectors sent through it side by side as copies of the sample."""

    def __init__(self, problem, layer, position: int, num: int):
        self.shape = layer.shape
        self.operators = [
            LayerOperator(problem.tape(run, [layer.name]), layer.name)
            for run in _copies(problem, layer.name, position, num, layer.by_batch)
        ]

    def probes(self, num: int, source) -> torch.Tensor:
        parts, left = [], num
        while left:
            for operator in self.operators:
                take = min(left, len(operator.tape))
                drawn = _probes(operator, self.shape, len(operator.tape), source)
                parts.append(drawn[:take])
                left -= take
                if not left:
                    break
        return torch.cat(parts)

    def _chunks(self, vectors: torch.Tensor):
        start = 0
        while start < len(vectors):
            for operator in self.operators:
                size = len(operator.tape)
                chunk = vectors[start : start + size]
                if not len(chunk):
                    return
                padded = torch.zeros(size, vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
                padded[: len(chunk)] = chunk
                yield operator, padded, len(chunk)
                start += size

    def apply(self, vectors: torch.Tensor) -> torch.Tensor:
        return torch.cat([op.product(v).double()[:n] for op, v, n in self._chunks(vectors)])

    def quadratures(self, vectors: torch.Tensor, steps: int) -> np.ndarray:
        return np.concatenate([_quadratures(op, v, steps)[:n] for op, v, n in self._chunks(vectors)])

    @property
    def dimension(self) -> int:
        return self.operators[0].dimension


def _hutch_plus_plus(sample: _Sample, options: MaxPositiveTraceOptions, source) -> tuple[float, float]:
    """``(estimate, sem)`` of the trace of the positive part of one sample's block."""
    sketch = sample.apply(sample.probes(min(options.subspace, sample.dimension), source))
    basis, r = torch.linalg.qr(sketch.T)  # [d, s]
    diagonal = r.diagonal().abs()
    basis = basis[:, diagonal > 1e-6 * diagonal.max()] if float(diagonal.max()) > 0 else basis[:, :0]
    inside = float(sample.quadratures(basis.T.contiguous(), options.num_steps).sum()) if basis.shape[1] else 0.0
    probes = sample.probes(options.num_probes, source)
    probes = probes - (probes @ basis) @ basis.T
    outside = sample.quadratures(probes, options.num_steps)
    return inside + float(outside.mean()), float(outside.std(ddof=1) / np.sqrt(len(outside)))


def measure(problem, context: Context) -> Measured:
    options, trace = context.options, context.measured["hessian_trace"]

    def positive_semidefinite(i: int) -> Part:
        """Exact traces where they were probed for want of a small output: only the largest few need them."""
        values = trace.samples["value"][:, i]
        noise = trace.samples["sem"][:, i]
        name = problem.layers[i].name
        if not noise.any():
            best = int(values.argmax())
            return _part(values[best], 0.0, best, "gauss-newton", True)
        likely = [int(p) for p in np.argsort(-(values + 4 * noise), kind="stable")[: options.candidates]]
        exact = np.concatenate(
            [gauss_newton_trace(tape)[:, 0].cpu().numpy() for tape in problem.tapes(sorted(likely), [name])]
        )
        best = int(exact.argmax())
        return _part(exact[best], 0.0, sorted(likely)[best], "gauss-newton of candidates", False)

    def dense(i: int, positions) -> np.ndarray:
        name = problem.layers[i].name
        return np.concatenate(
            [_positive_traces(dense_blocks(LayerOperator(tape, name))) for tape in problem.tapes(positions, [name])]
        )

    def affordable(i: int, positions) -> bool:
        """Whether all products of these samples are few enough; a block's dimension grows with a sequence's length."""
        name, products = problem.layers[i].name, 0
        shortest = LayerOperator(next(problem.tapes(positions[:1], [name])), name).dimension
        if len(positions) * shortest > options.dense_products:
            return False
        for tape in problem.tapes(positions, [name]):
            products += len(tape) * LayerOperator(tape, name).dimension
            if products > options.dense_products:
                return False
        return True

    def general(i: int) -> Part:
        layer = problem.layers[i]
        if layer.kind == "unused":
            return _part(0.0, 0.0, 0, "unused", True)
        if affordable(i, range(problem.num_samples)):
            values = dense(i, range(problem.num_samples))
            return _part(values.max(), 0.0, int(values.argmax()), "dense", True)
        # A probe's spread is about the Frobenius norm of the remainder, which bounds its trace from neither side but grows with it.
        score = trace.samples["value"][:, i] + trace.samples["probe_std"][:, i]
        likely = sorted(int(p) for p in np.argsort(-score, kind="stable")[: options.candidates])
        if affordable(i, likely):
            values = dense(i, likely)
            return _part(values.max(), 0.0, likely[int(values.argmax())], "dense for candidates", False)
        screened, source = [], stream(context, NAME, "screen", i)
        for tape in problem.tapes(likely, [layer.name]):
            operator = LayerOperator(tape, layer.name)
            starts = _probes(operator, layer.shape, len(tape), source)
            screened += list(zip(tape.positions, _quadratures(operator, starts, options.num_steps), strict=True))
        last = [p for p, _ in sorted(screened, key=lambda pair: -pair[1])[: options.finalists]]

        def again(p: int) -> float:
            sample = _Sample(problem, layer, p, 4)
            return sample.quadratures(sample.probes(4, stream(context, NAME, "choose", i, p)), options.num_steps).mean()

        chosen = max(last, key=again) if len(last) > 1 else last[0]
        sample = _Sample(problem, layer, chosen, options.subspace)
        estimate, sem = _hutch_plus_plus(sample, options, stream(context, NAME, "measure", i, chosen))
        return _part(estimate, sem, chosen, "stochastic Lanczos quadrature", False)

    def layer(i: int) -> Part:
        return (positive_semidefinite if problem.layers[i].positive_semidefinite else general)(i)

    parts = context.map("layers", list(range(len(problem.layers))), layer)
    layers = {}
    for item, part in zip(problem.layers, parts, strict=True):
        layers[item.name] = {
            "value": plain(part["value"].item()),
            "sem": plain(part["sem"].item()),
            "num_samples": problem.num_samples,
            "sample": problem.indices[int(part["position"])],
            "method": str(part["method"]),
            "exact": bool(part["exact"]),
        }
    note = "" if all(entry["exact"] for entry in layers.values()) else (
        "estimates are lower estimates of the maximum: samples that were not candidates may be larger"
    )  # fmt: skip
    return Measured({"layers": layers, "note": note})


def _part(value: float, sem: float, position: int, method: str, exact: bool) -> Part:
    return {
        "value": np.array(float(value)), "sem": np.array(float(sem)), "position": np.array(position),
        "method": np.array(method), "exact": np.array(exact),
    }  # fmt: skip


def forecast(problem, options: MaxPositiveTraceOptions) -> float:
    """Products on single samples, about a gradient of theirs each: of the candidates' probes, the finalists' four, and the estimate.

    Layers whose blocks are taken whole cost up to ``dense_products`` instead.
    """
    curved = sum(not layer.positive_semidefinite for layer in problem.layers)
    chains = options.candidates + 4 * options.finalists + options.subspace + options.num_probes
    return curved * (options.subspace + chains * options.num_steps) / problem.num_samples
