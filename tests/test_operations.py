"""Every row of the table of operations through every reader of a pass, on tiny networks, against brute force."""

import math
import runpy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from dense import Truth, cross_entropy
from operation_cases import APART, CASES, Case, D
from small_nets import labels
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from genbound.curvature.noise_by_row import can_move_rows, noisy_losses
from genbound.curvature.rule_of import RULES
from genbound.curvature.rules import Nested
from genbound.curvature.sweep import Sweep
from genbound.curvature.sweep_trial import can_sweep
from genbound.network.graph import Graph
from genbound.network.operation import Kind, No
from genbound.network.operations import OPERATIONS, UNKNOWN, named, of_aten, of_function, of_node
from genbound.network.problem import Problem
from genbound.quantities.squared_path_norm import applies_to, log_path_norm
from genbound.structure.constants import FUNCTIONS
from genbound.structure.output_watch import OutputWatch
from genbound.structure.path_sums import PATHS
from genbound.structure.reader import read_structure
from genbound.structure.tree import lipschitz

FIRST, HEAD, NUM = "first.weight", "head.weight", 4
IDS = [f"{case.row}-{i}" for i, case in enumerate(CASES)]
every_case = pytest.mark.parametrize("case", CASES, ids=IDS)


@pytest.fixture(autouse=True)
def _readers_alone(monkeypatch):
    """Cut derivatives are refused before any reader sees them; here the readers are asked themselves."""
    monkeypatch.setattr("genbound.network.problem.check_derivatives", lambda network, names: ())


class Between(nn.Module):
    """A layer, the operation on its result, and a head; no biases."""

    def __init__(self, case: Case):
        super().__init__()
        self.case = case
        self.first = nn.Linear(4, math.prod(case.shape), bias=False)
        with torch.no_grad():
            size = self.between(torch.ones(1, math.prod(case.shape), dtype=D)).numel()
        self.head = nn.Linear(size, 3, bias=False)

    def between(self, z):
        z = z if len(self.case.shape) == 1 else z.view(-1, *self.case.shape)
        return self.case.function(z).flatten(1)

    def forward(self, x):
        return self.head(self.between(self.first(x)))


@cache
def problem_of(case: Case) -> Problem:
    """Of a case, or of its twin: with the same weights and samples."""
    generator = torch.Generator().manual_seed(3)
    model = Between(case).to(D)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, dtype=D, generator=generator) / p.shape[1] ** 0.5)
    x = torch.randn(NUM, 4, dtype=D, generator=generator)
    return Problem(model, {n: torch.zeros_like(p) for n, p in model.named_parameters()}, (x, labels(NUM, 3)), dtype=D)


def twin_of(case: Case) -> Problem:
    return problem_of(case if case.twin is None else replace(case, function=case.twin))


def close(got, expected, tolerance=1e-10, size=0.0):
    """To rounding, relative to the largest of what is expected, or to what it was summed up from."""
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= tolerance * max(size, float(expected.abs().max()))


def row_of(case: Case):
    return named(case.row)


def expected_flat(case: Case) -> bool:
    return not case.curved and row_of(case).kind is not Kind.CURVED


# -- the table itself ---------------------------------------------------------------------------------------------


def test_every_row_has_a_case_or_a_reason():
    assert {case.row for case in CASES} | APART.keys() == {row.name for row in OPERATIONS}
    assert not {case.row for case in CASES} & APART.keys()


def test_every_name_is_torchs_and_stands_once():
    for names in ("nodes", "aten"):
        every = [name for row in OPERATIONS for name in getattr(row, names)]
        assert len(every) == len(set(every)), names
    kinds = torch._C._functions
    for row in OPERATIONS:
        assert all(any(hasattr(kinds, f"{node}Backward{i}") for i in range(3)) for node in row.nodes), row.name
        assert all(hasattr(torch.ops.aten, name) for name in row.aten), row.name
        places = (torch, torch.Tensor, F, torch._C._nn)
        for name in row.functions:
            assert any(hasattr(place, n) for place in places for n in (name, f"_{name}", f"__{name}__")), name


def test_every_answer_is_a_reason_or_something_that_its_reader_has():
    for row in OPERATIONS:
        assert isinstance(row.lipschitz, No) or row.lipschitz in FUNCTIONS or len(row.lipschitz) == 2, row.name
        assert isinstance(row.paths, No) or row.paths in PATHS, row.name
        assert isinstance(row.sweep, No) or row.sweep in (*RULES, "constant"), row.name
        assert (row.meets is not None) == (row.kind is Kind.PRODUCT), row.name
        told = row.homogeneous is None or row.keeps_zero is None
        assert not told or not isinstance(row.lipschitz, tuple), row.name


def test_the_page_is_the_tables():
    path = Path(__file__).parents[1] / "tools" / "operations_page.py"
    made = runpy.run_path(str(path))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), f"run python {path.relative_to(path.parents[1])}"


class _Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.rows = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.rows.add(of_aten(func).name)
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.rows = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.rows.add(of_function(func).name)
        return func(*args, **(kwargs or {}))


@every_case
def test_a_case_executes_its_row_on_every_level(case):
    leaf = torch.randn(2, *case.shape, dtype=D, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with _Names() as names, _Functions() as functions:
        out = case.function(leaf)
    assert case.row in names.rows
    assert case.row in {of_node(node).name for node in Graph(out, {"z": leaf}).order}
    if row_of(case).watched:
        assert case.row in functions.rows


def test_what_is_not_in_the_table_is_unknown_to_everybody():
    assert UNKNOWN.kind is Kind.CURVED and isinstance(UNKNOWN.lipschitz, No) and isinstance(UNKNOWN.paths, No)
    case = Case("unknown", lambda z: torch.special.erfcx(z))
    problem = problem_of(case)
    assert not problem.layers[0].positive_semidefinite and problem.layers[0].curved_by == "SpecialErfcx"
    assert "not in the table" in read_structure(problem).reason
    assert "SpecialErfcx" in applies_to(problem)
    assert can_sweep(problem)  # by nested derivatives


# -- the block ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of the dense truth, where torch cannot batch
@every_case
def test_the_block(case):
    """Positive semidefinite where the table says so; elsewhere it is not its Gauss-Newton part."""
    problem = problem_of(case)
    flat = {layer.name: layer.positive_semidefinite for layer in problem.layers}
    assert flat == {FIRST: expected_flat(case), HEAD: True}
    x, y = problem.batch(range(NUM)).inputs, problem.batch(range(NUM)).targets
    truth = Truth(twin_of(case).model, problem.init, list(x), list(y), cross_entropy, [FIRST])
    if flat[FIRST]:
        assert truth.smallest_eigenvalue(FIRST) >= -1e-12 * float(truth.blocks(FIRST).abs().max())
    elif not case.cautious:
        tape = problem.tape(range(NUM))
        v = torch.randn(NUM, *problem.params[FIRST].shape, dtype=D, generator=torch.Generator().manual_seed(1))
        assert float(tape.product(FIRST, v, "remainder")[0].abs().max()) > 1e-6


# -- the structure --------------------------------------------------------------------------------------------------


def _refusal(case: Case) -> str:
    if case.no_constant:
        return case.no_constant
    lipschitz = row_of(case).lipschitz
    if not isinstance(lipschitz, No):
        return ""
    return "not recognised as a layer" if row_of(case).meets else lipschitz.reason


@every_case
def test_the_lipschitz_constants(case):
    """Never exceeded by quotients of differences, near and far, in either norm; refused for the reason in the row."""
    found, model = read_structure(problem_of(case)), problem_of(case).model
    if _refusal(case):
        assert found.tree is None and _refusal(case) in found.reason
        return
    assert found.tree is not None, found.reason
    l2, sup, both = (lipschitz(found.tree, {FIRST: 1.0, HEAD: 1.0}, key) for key in ("l2", "sup", "lipschitz"))
    assert max(l2, sup) <= both
    generator = torch.Generator().manual_seed(4)
    largest = 0.0
    for scale in (0.3, 1, 4):
        z = scale * torch.randn(64, math.prod(case.shape), dtype=D, generator=generator)
        for step in (1e-3, 1.0, 10.0):
            for direction in (torch.randn(z.shape, dtype=D, generator=generator), torch.ones_like(z)):
                with torch.no_grad():
                    moved = model.between(z + step * direction) - model.between(z)
                assert bool((moved.norm(dim=1) <= l2 * step * direction.norm(dim=1) * (1 + 1e-9) + 1e-12).all())
                most = moved.abs().amax(1) / (step * direction.abs().amax(1))
                assert bool((most <= sup * (1 + 1e-9) + 1e-12).all())
                largest = max(largest, float(most.max()) / sup)
    assert largest > 0.05  # the constant says something


@every_case
def test_homogeneity_and_zero(case):
    """As evaluated; where the structure is cautious it may deny what holds, never claim what does not."""
    problem = problem_of(case)
    found = read_structure(problem)
    if found.tree is None:
        return
    z = torch.randn(8, math.prod(case.shape), dtype=D, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        f = problem.model.between
        homogeneous = all(torch.allclose(f(c * z), c * f(z), rtol=1e-9, atol=1e-12) for c in (0.1, 3.0, 20.0))
        zero = not bool(f(0 * z).any())
    holds, says = (homogeneous, zero), (found.positively_homogeneous, found.zero_preserving)
    assert all(h or not s for h, s in zip(holds, says, strict=True))
    assert case.cautious or holds == says


# -- derivatives and noise --------------------------------------------------------------------------------------------


def double_backward(tape, us, part):
    """``u^T (part) u`` of every sample along the joint direction."""
    products = tape.activation_products({name: [u] for name, u in us.items()}, list(us), part)
    return sum(tape.inner(name, [u], products[name]) for name, u in us.items())


@every_case
def test_the_sweep(case):
    """Second derivatives along directions of every sample's own, against the double backward pass."""
    problem = problem_of(case)
    assert can_sweep(problem) is not case.unswept
    if case.unswept:
        return
    tape, sweep = twin_of(case).tape(range(NUM)), Sweep(problem, range(NUM))
    rules = {type(step.rule) for step in sweep.steps}
    generator, us = torch.Generator().manual_seed(2), {}
    for name, use in sweep.uses.items():
        us[name] = use.perturb(torch.randn(NUM, *problem.params[name].shape, dtype=D, generator=generator))
    for chosen in (us, {FIRST: us[FIRST]}):
        hessian, remainder = (double_backward(tape, chosen, part) for part in ("hessian", "remainder"))
        close(sweep.hessian(chosen), hessian, case.tolerance, float(remainder.abs().max()))
        close(sweep.remainder(chosen), remainder, case.tolerance, float(hessian.abs().max()))
    if row_of(case).sweep in ("nested", "glu"):
        assert Nested in rules


@every_case
def test_noise_is_that_of_noisy_weights(case):
    """For one position the noise R g is that of the weights g x'/||x||, put into every sample's own network."""
    problem, sigma = problem_of(case), 0.3
    assert can_move_rows(problem) is not case.unmoved
    if case.unmoved or problem.params[HEAD].shape[1] == 1:
        return  # with one input the noise is drawn as weights, and the formula below is another
    generator = torch.Generator().manual_seed(6)
    g = {n: torch.randn(NUM, 1, len(p), dtype=D, generator=generator) for n, p in problem.params.items()}
    rows = [(position, (), 0) for position in range(NUM)]
    found = noisy_losses(problem, rows, lambda name, positions, width: g[name], [sigma])[0]
    x, y = problem.batch(range(NUM)).inputs, problem.batch(range(NUM)).targets
    for i in range(NUM):
        moved, inputs = {}, x[i]
        for name in (FIRST, HEAD):
            moved[name] = problem.params[name] + sigma * torch.outer(g[name][i, 0], inputs / inputs.norm())
            with torch.no_grad():
                inputs = problem.model.between((moved[FIRST] @ x[i])[None])[0]
        close(found[i], cross_entropy(problem.forward(moved, x[i : i + 1])[0], y[i]), 1e-9)


@every_case
def test_contractions_of_activations(case):
    """``||x|| / ||phi(x)||`` of what acts entry by entry, and of nothing else."""
    problem = problem_of(case)
    watch = OutputWatch(problem, {FIRST: False, HEAD: False}, NUM)
    with torch.no_grad(), watch:
        problem.forward(problem.params, problem.batch(range(NUM)).inputs)
    if not row_of(case).watched:
        assert case.aside or not watch.contractions
        return
    if case.aside:
        return
    z = watch.outputs[FIRST]
    out = problem.model.between(z)
    if out.shape == z.shape:
        close(watch.contractions[FIRST], z.norm(dim=1) / out.norm(dim=1))


# -- sums over paths ---------------------------------------------------------------------------------------------------


@every_case
def test_the_path_norm(case):
    """The network of squared weights on ones, where it is a sum over paths; otherwise the reason."""
    problem, paths = problem_of(case), row_of(case).paths
    if case.no_paths or isinstance(paths, No) or not expected_flat(case):
        words = case.no_paths or ("curved" if not expected_flat(case) else paths.reason)
        assert words in applies_to(problem)
        return
    assert applies_to(problem) is None, applies_to(problem)
    first, head = (problem.params[name].square() for name in (FIRST, HEAD))
    sums = (case.sums or case.function)(first.sum(1).view(1, *case.shape))
    assert log_path_norm(problem) == pytest.approx(math.log(float((head @ sums.flatten()).sum())), abs=1e-12)


ROUTES = [case for case in CASES if row_of(case).kind is Kind.ROUTE and case.sums is None and not case.no_paths]


@pytest.mark.parametrize("case", ROUTES, ids=[f"{case.row}-{i}" for i, case in enumerate(ROUTES)])
def test_the_path_norm_counts_paths(case):
    """Of a route it is the sum over all paths, one by one: each entry behind it is found again by its number."""
    problem = problem_of(case)
    numbers = torch.arange(1, 1 + math.prod(case.shape), dtype=D)
    first, head, total = problem.params[FIRST], problem.params[HEAD], 0.0
    for k, number in enumerate(problem.model.between(numbers[None])[0].tolist()):
        if number in numbers.tolist():
            weights = first[int(number) - 1].tolist()
            total += sum((float(head[c, k]) * w) ** 2 for c in range(3) for w in weights)
    assert log_path_norm(problem) == pytest.approx(math.log(total), abs=1e-12)


# -- tables of vectors -------------------------------------------------------------------------------------------------


class Positions(nn.Module):
    """A weight that an operation acts on before it is added to the input."""

    def __init__(self, case: Case):
        super().__init__()
        self.case, self.positions = case, nn.Parameter(torch.randn(1, *case.shape, dtype=D))
        size = case.function(self.positions).numel()
        self.head = nn.Linear(size, 3, dtype=D)

    def forward(self, x):
        return self.head(x.sum(1, keepdim=True) + self.case.function(self.positions).flatten(1))


@every_case
def test_tables_of_vectors(case):
    """Left out of the layers where it is only looked up, moved about, added or joined."""
    if case.aside or len(case.shape) == 0:
        return
    model = Positions(case)
    init = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    problem = Problem(model, init, (torch.randn(3, 4, dtype=D), labels(3, 3)), dtype=D)
    row = row_of(case)
    table = row.kind is Kind.ROUTE or (row.branches is not None and row.kind is Kind.LINEAR)
    assert ("positions" not in {layer.name for layer in problem.layers}) == table
