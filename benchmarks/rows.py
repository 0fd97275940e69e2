"""The rows of the table: each measures genbound and its peer on the same problem in this process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

import genbound
from benchmarks import memory as peak
from benchmarks import models, peers
from benchmarks.clock import forward, gradient, seconds, typical

ERROR = 0.01  # relative standard error at which costs are compared
AT_ONCE = 8  # vectors that the peers multiply together
LAYER_ERROR = 0.07  # to which every layer is run, its cost at ERROR following by the law of both sides
Row = dict


def row(what: str, obtained: str, target: str, reached: bool, note: str, **numbers) -> Row:
    return {"what": what, "obtained": obtained, "target": target, "reached": bool(reached), "note": note, **numbers}


# -- hessian_trace ------------------------------------------------------------------------------------------------


def _ours_to_error(problem, name: str, **options) -> tuple[float, dict]:
    start = time.process_time()
    results = genbound.evaluate(problem, [name], options={name: options})
    return time.process_time() - start, results.quantities[name]


def _known_to(draws: np.ndarray) -> str:
    """Relative standard error of a cost that is proportional to the variance of these draws, heavy tails included."""
    num, away = len(draws), draws - draws.mean()
    kurtosis = (away**4).mean() / (away**2).mean() ** 2
    return f"+- {100 * np.sqrt(max(kurtosis - (num - 3) / (num - 1), 2 / (num - 1)) / num):.0f} %"


class _PeerProbes:
    """Products with curvlinops' Hessian: ``num`` Rademacher probes, and from them what its estimators need for an error.

    It takes several vectors at once, which share the passes that do not depend on them.

    Attributes:
        product: seconds for one vector's product.
        values: ``z_i^T (H z)_i`` of every probe and layer, ``[num, L]``.
    """

    def __init__(self, problem, num: int, keep: bool = False):
        self._generator = torch.Generator().manual_seed(0)
        self._sizes = [layer.num_weights for layer in problem.layers]
        self._probes, self._images, values, spent = [], [], [], []
        with peers.plain_attention():
            self._hessian = peers.curvlinops_hessian(problem)
            for start in range(0, num, AT_ONCE):
                z = self._signs(min(AT_ONCE, num - start))
                image: list[torch.Tensor] = []
                spent.append(seconds(lambda z=z, image=image: image.append(self._hessian @ z)) / z.shape[1])
                values += torch.stack([part.sum(0) for part in (z * image[0]).split(self._sizes)], 1).tolist()
                if keep:
                    self._probes += z.to(torch.int8).unbind(1)
                    self._images += image[0].unbind(1)
        self.product, self.values = statistics.median(spent), np.array(values)

    def _signs(self, num: int) -> torch.Tensor:
        return torch.randint(0, 2, (sum(self._sizes), num), generator=self._generator) * 2.0 - 1

    def _times(self, vectors: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._hessian @ part for part in vectors.split(AT_ONCE, 1)], 1)

    def left_by_sketch(self, largest: int) -> dict[int, np.ndarray]:
        """What every probe gives outside a sketch of rank k, ``[num]``, for some k.

        A sketch takes k products and k more with the basis of its range; one nested sketch serves all k.
        """
        with peers.plain_attention():
            basis = torch.linalg.qr(self._times(self._signs(largest)))[0]
            image = self._times(basis)
        plain = np.array([float((z * hz).sum()) for z, hz in zip(self._probes, self._images, strict=True)])
        inside = torch.stack([basis.T @ z.float() for z in self._probes])
        across = torch.stack([image.T @ z.float() for z in self._probes])
        core, found = basis.T @ image, {}
        for k in (k for k in (0, 2, 4, 8, 16, 32, 64) if k <= largest):
            q, hq = inside[:, :k], across[:, :k]
            found[k] = plain - (2 * (q * hq).sum(1) - (q * (q @ core[:k, :k])).sum(1)).numpy()
        return found


def _xtrace_products(left: dict[int, float]) -> int | None:
    """Products of XTrace for the error that ``left`` is relative to; ``None`` if the largest sketch does not suffice.

    With m vectors it takes 2 m products and leaves the variance outside a sketch of m - 1, divided by m.
    """
    ranks = [k for k in left if k]
    for m in range(2, max(ranks) + 2):
        if np.exp(np.interp(np.log(m - 1), np.log(ranks), np.log([left[k] for k in ranks]))) <= m:
            return 2 * m
    return None


def trace_rows(
    problem, label: str, target: float, layer_target: float, probes: int = 32, largest: int = 16,
    layer_error: float = LAYER_ERROR, most: int = 32,
) -> Iterator[Row]:  # fmt: skip
    unit = typical(gradient(problem), 2)
    spent, ours = _ours_to_error(problem, "hessian_trace", total_sem=ERROR, layer_sem=10.0, max_probes=4096)
    # The exact part and every sample's first probes are paid once, whatever the error.
    once, _ = _ours_to_error(problem, "hessian_trace", total_sem=10.0, layer_sem=10.0, max_probes=1)
    layers_spent, ours_layers = _ours_to_error(
        problem, "hessian_trace", total_sem=10.0, layer_sem=layer_error, max_probes=most
    )
    total = ours["total"]
    reached = total["sem"] / abs(total["value"])
    spent *= max(1.0, (reached / ERROR) ** 2)
    peer = _PeerProbes(problem, probes, keep=True)
    pyhessian = seconds(lambda: peers.pyhessian_trace(problem, 1))
    product, values = min(peer.product, pyhessian), peer.values
    draws = peer.left_by_sketch(largest)
    left = {k: float(found.var(ddof=1)) / (ERROR * total["value"]) ** 2 for k, found in draws.items()}
    hutchpp, rank = min((2 * k + num, k) for k, num in left.items())
    xtrace = _xtrace_products(left)
    best = min(hutchpp, xtrace or hutchpp)
    found = f"XTrace {xtrace}" if xtrace else f"XTrace more than {2 * largest + 2}"
    ratio = best * product / spent
    yield row(
        f"hessian_trace, total: {label}, {problem.num_samples} samples", f"{ratio:.0f}x", f">= {target:g}x", ratio >= target,
        f"genbound {spent / unit:.1f} gradients for 1 % (obtained {100 * reached:.2f} %); best peer {best:.0f} products of "
        f"{product / unit:.1f} gradients, PyHessian's of {pyhessian / unit:.1f} (Hutchinson {left[0]:.0f}, Hutch++ {hutchpp:.0f} at rank {rank}, {found}; "
        f"rank {largest} leaves {100 * left[largest] / left[0]:.0f} % of the variance), known to {_known_to(draws[rank])}, extrapolated by 1/m",
        ratio=ratio, gradients=spent / unit, peer_products=best, product_gradients=product / unit,
        left_by_sketch=left, value=total["value"], sem=total["sem"], peer_mean=float(values.sum(1).mean()),
        peer_sem=float(values.sum(1).std(ddof=1) / np.sqrt(probes)), seconds=spent, gradient_seconds=unit,
    )  # fmt: skip
    names = list(ours_layers["layers"])
    value = np.array([ours_layers["layers"][n]["value"] for n in names])
    sem = np.array([ours_layers["layers"][n]["sem"] for n in names])
    scale = np.maximum(np.abs(value), 0.01 * np.abs(value).max())
    # Probes beyond those of this run would follow the same law.
    each = once + (layers_spent - once) * np.maximum((sem / scale / ERROR) ** 2, 0.2)
    theirs = values.var(0, ddof=1) / (ERROR * scale) ** 2 * product
    median = float(np.median(theirs / each))
    yield row(
        f"hessian_trace, median layer: {label}, {problem.num_samples} samples", f"{median:.0f}x", f">= {layer_target:g}x",
        median >= layer_target, f"against Hutchinson's joint probes; layers from {np.min(theirs / each):.0f}x to "
        f"{np.max(theirs / each):.0f}x; genbound's layers to {100 * np.median(sem / scale):.1f} % in the median, {layers_spent / unit:.1f} gradients, "
        f"of which {once / unit:.1f} whatever the error",
        ratio=median, gradients=layers_spent / unit, once=once / unit,
    )  # fmt: skip


def minilm_trace() -> Iterator[Row]:
    yield from trace_rows(models.minilm(512), "MiniLM/SST-2", 100, 50, probes=32, largest=8)


def minilm_trace_1024() -> Iterator[Row]:
    yield from trace_rows(models.minilm(1024), "MiniLM/SST-2", 100, 100, probes=16, largest=4)


def minilm_trace_2048() -> Iterator[Row]:
    yield from trace_rows(models.minilm(2048), "MiniLM/SST-2", 100, 100, probes=16, largest=4)


def minilm_trace_128() -> Iterator[Row]:
    yield from trace_rows(models.minilm(128), "MiniLM/SST-2", 25, 12, probes=128)


def fitted_trace() -> Iterator[Row]:
    problem = models.fitted(256)
    loss = models.measured_loss(problem)
    # Here the part that is computed exactly would be most of the time for the other rows' errors.
    yield from trace_rows(
        problem, f"MiniLM well fitted (loss {loss:.4f})", 1000, 1000, largest=32, layer_error=0.02, most=512
    )


def exact_trace(network: str) -> Callable[[], Iterator[Row]]:
    def measure() -> Iterator[Row]:
        problem = models.cifar(network, 128)
        unit = typical(gradient(problem), 2)
        spent, ours = _ours_to_error(problem, "hessian_trace")
        gradients = spent / unit
        peer = _PeerProbes(problem, 12)
        product, values = peer.product, peer.values
        mean, sem = values.sum(1).mean(), values.sum(1).std(ddof=1) / np.sqrt(len(values))
        yield row(
            f"hessian_trace: {network}/CIFAR-10, exact, all layers", f"{gradients:.1f} gradients", "<= 12", gradients <= 12,
            f"{problem.num_outputs} classes, sem {ours['total']['sem']:g}; curvlinops' probes: "
            f"{(mean - ours['total']['value']) / sem:+.1f} of their sem away, {product / unit:.1f} gradients each",
            gradients=gradients, value=ours["total"]["value"], peer_mean=float(mean), peer_sem=float(sem),
        )  # fmt: skip

    return measure


# -- max_quadratic_form -------------------------------------------------------------------------------------------


def minilm_quadratic_form() -> Iterator[Row]:
    problem = models.minilm(128)
    unit, layers = typical(gradient(problem), 2), len(problem.layers)
    from genbound.quantities.max_quadratic_form import screen

    screened = sum(seconds(lambda s=shard: screen(problem, s)) for shard in problem.shards()) / unit / layers
    spent, ours = _ours_to_error(problem, "max_quadratic_form")
    each = spent / unit / layers
    entries = ours["layers"].values()
    closed = sum(e["upper"] - e["lower"] <= ERROR * e["upper"] for e in entries)
    yield row(
        "max_quadratic_form: MiniLM/SST-2, screening of all samples", f"{screened:.2f} gradients a layer", "<= 1",
        screened <= 1, "one product of every sample with every layer's own block", gradients=screened,
    )  # fmt: skip
    yield row(
        "max_quadratic_form: MiniLM/SST-2, to 1 % on every layer", f"{each:.2f} gradients a layer", "<= 3",
        each <= 3 and closed == layers, f"{closed} of {layers} layers closed to 1 %", gradients=each, closed=closed,
    )  # fmt: skip
    # The peer: Lanczos for every sample and layer on that layer's Hessian of that one sample, here on a few of them.
    chosen, products, cost = np.random.default_rng(0), [], []
    for _ in range(12):
        layer = problem.layers[int(chosen.integers(layers))]
        position = int(chosen.integers(problem.num_samples))
        if not problem.displacement[layer.name].any():
            continue
        products.append(peers.lanczos_products(problem, layer.name, position, ERROR, 100))
        cost.append(_sample_product(problem, layer.name, position))
    peer = float(np.mean(np.array(products) * np.array(cost))) * problem.num_samples * layers
    yield row(
        "max_quadratic_form: MiniLM/SST-2, against Lanczos for every sample", f"{peer / spent:.0f}x", ">= 20x",
        peer / spent >= 20, f"peer extrapolated from {len(products)} pairs of sample and layer, {np.mean(products):.0f} products each",
        ratio=peer / spent,
    )  # fmt: skip


def _sample_product(problem, name: str, position: int) -> float:
    """Seconds for one product with curvlinops' Hessian of one sample in one layer."""
    from curvlinops import HessianLinearOperator

    model = peers.Plain(problem.model)
    for key, p in model.named_parameters():
        p.requires_grad_(key.removeprefix("model.") == name)
    batch = problem.batch([position])
    inputs = peers.Inputs(batch.inputs) if isinstance(batch.inputs, dict) else batch.inputs
    weight = [p for p in model.parameters() if p.requires_grad]
    with peers.plain_attention():
        hessian = HessianLinearOperator(
            model, torch.nn.CrossEntropyLoss(), weight, [(inputs, batch.targets)], check_deterministic=False, num_data=1,
            batch_size_fn=lambda x: x.size(0),
        )  # fmt: skip
        return typical(lambda: hessian @ [problem.displacement[name]], 2)


def exact_quadratic_form(network: str) -> Callable[[], Iterator[Row]]:
    def measure() -> Iterator[Row]:
        problem = models.cifar(network, 128)
        unit = typical(gradient(problem), 2)
        spent, _ = _ours_to_error(problem, "max_quadratic_form")
        each = spent / unit / len(problem.layers)
        yield row(
            f"max_quadratic_form: {network}/CIFAR-10, exact", f"{each:.2f} gradients a layer", "<= 0.5", each <= 0.5,
            f"{len(problem.layers)} layers", gradients=each,
        )  # fmt: skip

    return measure


# -- noise_stability ----------------------------------------------------------------------------------------------


def minilm_noise(num: int = 256, draws: int = 64) -> Iterator[Row]:
    problem = models.minilm(num)
    sigma, unit = 0.005, typical(forward(problem), 3)
    start = time.process_time()
    # The trace, which the mean of the control comes from, is part of the cost.
    results = genbound.evaluate(problem, ["noise_stability"], options={
        "hessian_trace": {"total_sem": 0.9 * ERROR, "layer_sem": 10.0, "max_probes": 4096},
        "noise_stability": {"sigmas": (sigma,), "relative_sem": 1.25 * ERROR, "max_perturbations": 512},
    })  # fmt: skip
    spent, ours = time.process_time() - start, results.quantities["noise_stability"]
    share = results.cost["seconds"]["hessian_trace"] / (
        results.cost["seconds"]["hessian_trace"] + results.cost["seconds"]["noise_stability"]
    )
    entry = ours["sigmas"][0]
    spent *= max(1.0, (entry["sem"] / entry["value"] / ERROR) ** 2)
    shared = [peers.shared_one_sided(problem, sigma, draw) for draw in range(draws)]
    passes = (np.std(shared, ddof=1) / (ERROR * entry["value"])) ** 2
    peer = passes * typical(lambda: peers.shared_one_sided(problem, sigma, 0), 3)
    yield row(
        f"noise_stability: MiniLM/SST-2, {num} samples, sigma {sigma:g}, mean to 1 %", f"{peer / spent:.0f}x", ">= 100x",
        peer / spent >= 100, f"genbound {spent / unit:.0f} forward passes of time, {100 * share:.0f} % of it for the trace; one shared one-sided draw a pass: {passes:.0f} passes, "
        f"known to {_known_to(np.array(shared))}, extrapolated by 1/m", ratio=peer / spent, passes=spent / unit, peer_passes=float(passes),
    )  # fmt: skip


def minilm_noise_1024() -> Iterator[Row]:
    yield from minilm_noise(1024)


def minilm_draw() -> Iterator[Row]:
    from genbound.curvature.noise_by_row import Normals, noisy_losses

    problem = models.minilm(256)
    unit = typical(forward(problem), 3)

    def draws() -> None:
        for start in range(0, problem.num_samples, problem.batch_size):
            rows = [(p, ("row", p // 16), p % 16) for p in range(start, start + problem.batch_size)]
            normals = Normals(rows, 0, problem.params[problem.layers[0].name])
            for s in (0.001, 0.002, 0.005, 0.01, 0.02):
                noisy_losses(problem, rows, normals, (s, -s))

    each = typical(draws, 1) / unit / 10
    yield row(
        "noise_stability: MiniLM/SST-2, time of a draw", f"{each:.2f} forward passes", "<= 1.2", each <= 1.2,
        "an independent U for every sample, on the default grid of five sigmas", passes=each,
    )  # fmt: skip


# -- everything ---------------------------------------------------------------------------------------------------


def minilm_evaluate(num: int = 1000) -> Iterator[Row]:
    problem = models.minilm(num)
    steps, sentences = 20, len(problem.data)
    order = torch.randperm(sentences, generator=torch.Generator().manual_seed(0)).tolist()
    optimizer = torch.optim.AdamW(problem.model.parameters(), lr=0.0)
    problem.model.train()
    for p in problem.model.parameters():
        p.requires_grad_()

    def train() -> None:
        for step in range(steps):
            batch = problem.data.batch(order[16 * step : 16 * step + 16])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(problem.model(**batch.inputs).logits, batch.targets).backward()
            optimizer.step()

    epochs = typical(train, 1) * 2 * sentences / 16 / steps
    problem = models.minilm(num)
    start = time.process_time()
    results = genbound.evaluate(problem)
    spent = time.process_time() - start
    parts = {k: round(v) for k, v in sorted(results.cost["seconds"].items(), key=lambda kv: -kv[1]) if v >= 1}
    yield row(
        f"evaluate: MiniLM/SST-2, every default quantity, {num} samples", f"{spent / epochs:.2f} of two epochs", "< 1",
        spent < epochs, f"two epochs on {sentences} sentences take {epochs:.0f} s, evaluate {spent:.0f} s; wall seconds: {parts}",
        ratio=spent / epochs, seconds=spent, epochs_seconds=epochs,
    )  # fmt: skip


def memory() -> Iterator[Row]:
    step = peak.in_process("training_step")
    for name in peak.QUANTITIES:
        used = peak.in_process(name)
        yield row(
            f"peak memory of {name}: MiniLM/SST-2, batches of 16", f"{used / step:.2f} training steps", "<= 2",
            used <= 2 * step, f"{used / 2**20:.0f} MiB; a step of AdamW {step / 2**20:.0f} MiB; above the loaded pair", ratio=used / step,
        )  # fmt: skip


def large_outputs() -> Iterator[Row]:
    for kind in models.HEADS:
        step = peak.in_process("training_step", kind)
        used = {name: peak.in_process(name, kind) for name in peak.QUANTITIES}
        worst = max(used, key=used.get)
        yield row(
            f"peak memory with {kind}, batches of 16", f"{used[worst] / step:.2f} training steps", "<= 2",
            used[worst] <= 2 * step, f"most of five quantities: {worst}, {used[worst] / 2**20:.0f} MiB; a step of AdamW "
            f"{step / 2**20:.0f} MiB; above the loaded pair", ratio=used[worst] / step, used=used,
        )  # fmt: skip


# -- is it the same number? ---------------------------------------------------------------------------------------


def minilm_agreement(num: int = 16, probes: int = 400) -> Iterator[Row]:
    problem = models.minilm(num)
    options = {"layer_sem": 0.01, "total_sem": 0.005, "max_probes": 512}
    ours = genbound.evaluate(problem, ["hessian_trace"], options={"hessian_trace": options}).quantities["hessian_trace"]
    values = _PeerProbes(problem, probes).values
    values = np.column_stack([values, values.sum(1)])
    entries = [*ours["layers"].values(), ours["total"]]
    mean, sem = values.mean(0), values.std(0, ddof=1) / np.sqrt(probes)
    z = (mean - [e["value"] for e in entries]) / np.hypot(sem, [e["sem"] for e in entries])
    yield row(
        f"hessian_trace: MiniLM/SST-2, {num} samples, every layer against {probes} probes of curvlinops",
        f"{np.abs(z).max():.1f} errors at most", "<= 4", np.abs(z).max() <= 4, f"mean square {np.mean(z[:-1] ** 2):.2f} over {len(z) - 1} layers, total "
        f"{z[-1]:+.1f}; relative error of the total {100 * sem[-1] / mean[-1]:.1f} % there, {100 * entries[-1]['sem'] / entries[-1]['value']:.1f} % here",
        z=z.tolist(),
    )  # fmt: skip
    sigma = 0.005
    noise = genbound.evaluate(
        problem,
        ["noise_stability"],
        options={"noise_stability": {"sigmas": (sigma,), "relative_sem": 0.02, "max_perturbations": 512}},
    )
    entry = noise.quantities["noise_stability"]["sigmas"][0]
    base = models.measured_loss(problem)
    plain = np.array([peers.shared_one_sided(problem, sigma, draw) for draw in range(probes)]) - base
    sem = plain.std(ddof=1) / np.sqrt(probes)
    z = (plain.mean() - entry["value"]) / np.hypot(sem, entry["sem"])
    yield row(
        f"noise_stability: MiniLM/SST-2, {num} samples, against {probes} shared one-sided draws", f"{abs(z):.1f} errors",
        "<= 4", abs(z) <= 4, f"{entry['value']:.5f} +- {entry['sem']:.5f} here, {plain.mean():.5f} +- {sem:.5f} there", z=float(z),
    )  # fmt: skip


# -- precision and compilation ------------------------------------------------------------------------------------


def minilm_precision(num: int = 32) -> Iterator[Row]:
    options = {"hessian_trace": {"num_pilot": 2, "max_probes": 4, "layer_sem": 1e-9, "total_sem": 1e-9}}
    found = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        problem = models.minilm(num, dtype=dtype)
        spent, ours = _ours_to_error(problem, "hessian_trace", **options["hessian_trace"])
        found[dtype] = spent, ours["total"]["value"], [e["value"] for e in ours["layers"].values()]
    seconds32, exact = found[torch.float32][0], found[torch.float64]
    for dtype in (torch.float32, torch.bfloat16):
        spent, total, layers = found[dtype]
        error = abs(total - exact[1]) / abs(exact[1])
        worst = np.max(np.abs(np.subtract(layers, exact[2])) / np.max(np.abs(exact[2])))
        yield row(
            f"hessian_trace: MiniLM/SST-2 in {str(dtype).removeprefix('torch.')} against float64, same probes",
            f"{error:.1e} relative error", "<= 1e-3", error <= 1e-3, f"layers to {worst:.1e} of the largest; time {spent / seconds32:.2f} of float32's, float64 "
            f"{exact[0] / seconds32:.2f}", error=error, time=spent / seconds32,
        )  # fmt: skip


def minilm_compiled(num: int = 64) -> Iterator[Row]:
    problem = models.minilm(num)
    batch = problem.batch(list(range(num - 16, num)))
    compiled = torch.compile(problem.model, dynamic=False)

    def run(model: torch.nn.Module) -> None:
        with torch.no_grad(), peers.plain_attention():
            model(**batch.inputs)

    start = time.perf_counter()
    run(compiled)
    waited = time.perf_counter() - start
    ratio = typical(lambda: run(compiled), 9) / typical(lambda: run(problem.model), 9)
    yield row(
        "torch.compile: MiniLM/SST-2, a forward pass", f"{ratio:.2f} of the time", "< 1", ratio < 1,
        f"compilation takes {waited:.0f} s for each shape of a batch", ratio=ratio, compilation=waited,
    )  # fmt: skip


ROWS: dict[str, Callable[[], Iterator[Row]]] = {
    "resnet20_trace": exact_trace("resnet20"),
    "efficientnet_trace": exact_trace("efficientnet_lite0"),
    "resnet20_quadratic_form": exact_quadratic_form("resnet20"),
    "efficientnet_quadratic_form": exact_quadratic_form("efficientnet_lite0"),
    "minilm_noise": minilm_noise,
    "minilm_noise_1024": minilm_noise_1024,
    "minilm_draw": minilm_draw,
    "minilm_trace_128": minilm_trace_128,
    "minilm_trace": minilm_trace,
    "minilm_trace_1024": minilm_trace_1024,
    "minilm_trace_2048": minilm_trace_2048,
    "fitted_trace": fitted_trace,
    "minilm_quadratic_form": minilm_quadratic_form,
    "minilm_evaluate": minilm_evaluate,
    "memory": memory,
    "large_outputs": large_outputs,
    "minilm_agreement": minilm_agreement,
    "minilm_precision": minilm_precision,
    "minilm_compiled": minilm_compiled,
}
