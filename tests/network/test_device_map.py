"""Layers on several devices: pretended ones, on the processor, where the numbers must be those of one device."""

import json

import pytest
import torch
from pretended_devices import PretendedDevices
from torch import nn

import genbound
from genbound.cli.main import main
from genbound.errors import GenboundError
from genbound.evaluation.agreement import _refuse_shared
from genbound.network.device_map import balanced, read_device_map, whole_modules
from genbound.network.memory import GRAPHS, saved_on, weight_bytes, weights_on
from genbound.quantities import QUANTITIES
from tests.attack.stored_run import arguments, write_files

# Every quantity, each by as little work as it takes.
OPTIONS = {
    "hessian_trace": {"layer_sem": 5.0, "total_sem": 5.0, "exact_products": 0},
    "noise_stability": {
        "sigmas": (0.01,), "relative_sem": 5.0, "max_perturbations": 1, "small_perturbations": 1, "num_shared": 2,
        "least_pairs": 8,
    },
    "flatness": {"num_draws": 2, "num_coarse": 2, "tolerance": 1.0},
    "sharpness": {"tolerance": 1.0, "num_steps": 2},
    "max_positive_trace": {"dense_products": 0, "num_steps": 2, "num_probes": 2},
    "hessian_spectrum": {"num_probes": 2, "num_steps": 2},
    "loss_path": {"points": ()},
    "loss_plane": {"along": (), "across": (0.5,)},
}  # fmt: skip


def mlp():
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3))
    return model, (torch.randn(9, 5), torch.arange(9) % 3), {"0": "cuda:0", "2": "cuda:1", "4": "cuda:1"}


def conv_net():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.3, 2)
    return model, (torch.randn(9, 2, 6, 6), torch.arange(9) % 3), {"0": 0, "1": 0, "": 1}


def transformer():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=12, num_labels=3,
    )  # fmt: skip
    tokens = torch.randint(1, 20, (8, 4))
    data = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": torch.arange(8) % 3}
    data["attention_mask"][::2, 3:] = 0
    return transformers.BertForSequenceClassification(config), data, {"": 0, "bert.encoder.layer.1": 1, "classifier": 1}


def parts(net):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model, data, device_map = net()
        model = model.double()
        init = {name: p.detach() - 0.2 * torch.randn_like(p) for name, p in model.named_parameters()}
    if not isinstance(data, dict):
        data = (data[0].double(), data[1])
    return model, init, data, device_map


def problem(net, on=None, **options):
    model, init, data, device_map = parts(net)
    where = {"device": on} if on else {"device_map": device_map}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    return genbound.Problem(model, init, data, init_buffers=buffers, **{"batch_size": 5, **where, **options})


FEW = "*.query.weight,*.1.output.dense.weight,classifier.weight"  # on both devices


@pytest.mark.parametrize(
    ("net", "layers"),
    [
        (mlp, None), pytest.param(conv_net, None, marks=pytest.mark.slow),
        pytest.param(transformer, FEW, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_every_quantity_is_the_same_on_two_devices(net, layers):
    with PretendedDevices(2):
        one, two = (
            genbound.evaluate(problem(net, on, layers=layers), QUANTITIES, options=OPTIONS, effort="thorough")
            for on in ("cuda:0", None)
        )
    assert two.config["device"] == "cuda:0, cuda:1" and one.config["device"] == "cuda:0"
    # Its second derivative is a sum over all weights, in the order in which autograd comes to them.
    curvatures = [found.quantities["loss_path"].pop("curvature") for found in (one, two)]
    assert curvatures[1] == pytest.approx(curvatures[0], rel=1e-12)
    assert one.quantities == two.quantities and one.bounds == two.bounds and one.samples.equals(two.samples)
    assert one.notes == two.notes


@pytest.mark.parametrize(("net", "layers"), [(conv_net, None), (transformer, FEW)])
def test_what_most_read_is_the_same_on_two_devices(net, layers):
    names = ["losses", "margin", "hessian_trace", "fisher_rao_norm", "max_quadratic_form"]
    options = {"hessian_trace": OPTIONS["hessian_trace"]}
    with PretendedDevices(2):
        one, two = (
            genbound.evaluate(problem(net, on, layers=layers), names, options=options) for on in ("cuda:0", None)
        )
    assert one.quantities == two.quantities and one.samples.equals(two.samples)


@pytest.mark.parametrize(
    ("quantity", "options"),
    [
        ("max_quadratic_form", {"maximum": "found", "exact_outputs": 1, "num_draws": 2}),
        ("max_quadratic_form", {"convention": "paper-code"}),
        ("hessian_trace", {"error": 0.5}),
        ("layer_curvature", {"curvature": "fisher", "exact_outputs": 1}),
        ("hessian_spectrum", {"curvature": "ggn", "num_probes": 2, "num_steps": 2}),
    ],
)
def test_other_ways_are_the_same_on_two_devices(quantity, options):
    with PretendedDevices(2):
        one, two = (
            genbound.evaluate(problem(mlp, on, dtype=torch.float32), [quantity], options={quantity: options})
            for on in ("cuda:0", None)
        )
    assert one.quantities == two.quantities and quantity in two.quantities


def test_an_adapter_is_certified_the_same_on_two_devices():
    model, init, data, device_map = parts(mlp)
    factors = {"2.weight": (0.3 * torch.randn(6, 1).double(), 0.3 * torch.randn(1, 7).double())}
    with torch.no_grad():
        model[2].weight.copy_(init["2.weight"] + factors["2.weight"][0] @ factors["2.weight"][1])
    names = ["gibbs_error", "quantized_error", "displacement_norm"]
    with PretendedDevices(2):
        one, two = (
            genbound.evaluate(genbound.Problem(model, init, data, factors=factors, **where), names)
            for where in ({"device": "cuda:0"}, {"device_map": device_map})
        )
    assert one.quantities == two.quantities and "gibbs_error" in two.quantities


# -- where the layers go ----------------------------------------------------------------------------------------------


def places(model, free, order=()):
    devices = [torch.device("cuda", i) for i in range(len(free))]
    return {name: device.index for name, device in balanced(model, devices, free, order).items()}


def test_layers_are_spread_by_free_memory():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8)))
    assert places(model, [1, 1]) == {str(i): i // 4 for i in range(8)}
    assert places(model, [3, 1]) == {str(i): i // 6 for i in range(8)}
    assert places(model, [1, 1, 2]) == {str(i): [0, 0, 1, 1, 2, 2, 2, 2][i] for i in range(8)}


def test_layers_are_spread_in_the_order_of_the_pass():
    model = nn.ModuleDict({"last": nn.Linear(4, 4), "first": nn.Linear(4, 4)})
    assert places(model, [1, 1], ["", "first", "last"]) == {"first": 0, "last": 1}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(3, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 3, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x):
        x = self.words(x) * self.scale
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x)


TIED = (torch.arange(6) % 3, torch.arange(6) % 3)


def init_of(model):
    return {name: 0.5 * p.detach() for name, p in model.named_parameters()}


def test_a_tied_weight_stays_where_it_is_first_and_so_does_what_a_split_module_owns():
    model = Tied()
    with PretendedDevices(2):
        found = genbound.Problem(model, init_of(model), TIED, device_map="auto")
        one = genbound.Problem(model, init_of(model), TIED, device="cuda:0")
        devices = {name: p.device.index for name, p in found.params.items()}
        assert devices["words.weight"] == devices["scale"] == devices["blocks.0.weight"] == 0
        assert devices["blocks.2.weight"] == 1 and found.placement.modules["head"].index == 0
        a, b = (genbound.evaluate(p, ["losses", "hessian_trace"]).quantities for p in (one, found))
    assert a == b
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert {p.device.type for p in model.parameters()} == {"cpu"}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))

    def forward(self, x):
        return x + self.inner(x)


def test_modules_with_a_way_around_are_whole():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Block(), Block()), nn.Linear(4, 3))
    assert whole_modules(model) == ["0", "1.0", "1.1", "2"]
    model._no_split_modules = ["Sequential"]
    assert whole_modules(model) == [""]
    assert whole_modules(Tied()) == ["words", "blocks.0", "blocks.1", "blocks.2", "head"]


def test_a_single_device_is_said_to_be_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    data = (torch.randn(6, 5), torch.arange(6) % 3)
    plain, auto = (genbound.Problem(model, init_of(model), data, device_map=m) for m in (None, "auto"))
    assert plain.remarks == () and auto.remarks[0].startswith("device map auto: all layers are on cpu")
    assert genbound.evaluate(plain, ["losses"]).quantities == genbound.evaluate(auto, ["losses"]).quantities
    with PretendedDevices(1):
        assert genbound.Problem(model, init_of(model), data, device_map="auto").device == torch.device("cuda:0")


def test_a_processor_by_number_is_the_processor():
    """It is one memory: neither are there two devices, nor is its room there twice."""
    found = problem(mlp, device_map={"": "cpu", "2": "cpu:0", "4": "cpu:1"})
    assert found.devices == (torch.device("cpu"),) == tuple(found.budgets) and found.remarks == ()


def test_the_tightest_device_decides_how_many_samples_share_a_pass():
    with PretendedDevices(2):
        free = problem(mlp, batch_size=8)
        held, saved = weights_on(free), saved_on(free, [0], free.samples_first)
        assert set(held) == set(saved) == set(free.devices) and sum(held.values()) == weight_bytes(free)
        first, last = free.devices
    for tight in (first, last):
        rooms = [held[d] + GRAPHS * saved[d] * (3 if d == tight else 50) for d in (first, last)]
        with PretendedDevices(2, rooms):
            assert problem(mlp, batch_size=8).batch_size == 3


def test_the_command_line_spreads_layers(tmp_path, capsys):
    write_files(tmp_path)
    device_map, config = tmp_path / "map.json", tmp_path / "options.yaml"
    device_map.write_text('{"": 0, "fc": 1}')
    config.write_text(f"device-map: {device_map}\n")
    command = arguments(tmp_path, tmp_path / "out")
    with PretendedDevices(2):
        assert main([*command, "--measures", "losses", "--config", str(config)]) == 0
        assert "The weights are spread over 2 devices" in capsys.readouterr().out
        assert main([*command, "--device-map", str(tmp_path / "none.json")]) == 2
    assert "none.json cannot be read" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "results.json").read_text())["config"]["device"] == "cuda:0, cuda:1"


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device_map", "said"),
    [
        ({"0": 0, "2": 1}, "no device for 4: name it"),
        ({"0": 0, "2": 1, "5": 1}, "names '5', and the model has no such module"),
        ({"": 0, "4": 2}, "device 'cuda:2' cannot be used here"),
        ({"": 0, "4": "disk"}, "puts 4 on disk"),
        ({"": 0, "4": "meta"}, "device 'meta' cannot be used here: it holds shapes and no numbers"),
        ({"": 0, "4": "cpu"}, "mixes kinds of device (cpu and cuda)"),
        ("balanced", "device map 'balanced' is unknown: use auto"),
    ],
)
def test_maps_that_do_not_fit_are_refused(device_map, said):
    with PretendedDevices(2), pytest.raises(GenboundError) as error:
        problem(mlp, device_map=device_map)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("device", ["cuda:0", "xpu", "mps", "hpu:1", "ipu", "cuda:x", "gpu"])
def test_a_device_that_is_not_there_is_refused_in_one_short_line(device):
    """Each kind is refused by torch in its own way, some with a list of all that it knows."""
    unknown = device in ("cuda:x", "gpu")
    if not unknown and getattr(getattr(torch, device.partition(":")[0], None), "is_available", bool)():
        pytest.skip(f"there is {device}")
    said = "is none that torch knows" if unknown else "cannot be used here: "
    for where in ({"on": device}, {"device_map": {"": device}}):
        with pytest.raises(GenboundError, match=f"device '{device}' {said}") as error:
            problem(mlp, **where)
        assert len(str(error.value)) < 120 and "use cpu" in str(error.value)


@pytest.mark.parametrize("how", ["evaluate without data", "inspect without data", "inspect without weights"])
def test_names_of_a_map_are_checked_where_nothing_is_put_anywhere(tmp_path, capsys, how):
    """The devices are not: the machine at hand may have none of them."""
    write_files(tmp_path)
    device_map, pair = tmp_path / "map.json", [str(tmp_path / f"{name}.safetensors") for name in ("tuned", "init")]
    command, _, lacks = how.split()
    command = [command, *pair, "--model", f"{tmp_path / 'nets.py'}:Net", "--device-map", str(device_map)]
    if lacks == "weights":
        command += ["--data", f"{tmp_path / 'nets.py'}:data", "--no-weights"]
    device_map.write_text('{"": 7, "fc": 8}')
    assert main(command) == 0
    capsys.readouterr()
    device_map.write_text('{"": 7, "fcc": 8}')
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("names 'fcc', and the model has no such module (did you mean fc?)")
    with pytest.raises(GenboundError, match="names 'fcc'"):
        genbound.load(*pair, f"{tmp_path / 'nets.py'}:Net", device_map={"": 7, "fcc": 8})


def test_a_tied_weight_on_two_devices_is_refused():
    model = Tied()
    with PretendedDevices(2), pytest.raises(GenboundError, match=r"words\.weight on cuda:0 and head\.weight, which is"):
        genbound.Problem(model, init_of(model), TIED, device_map={"": 0, "head": 1})


def test_a_module_that_joins_two_devices_is_named():
    model = nn.Sequential(Block(), nn.Linear(4, 3))
    data = (torch.randn(6, 4), torch.arange(6) % 3)
    with PretendedDevices(2), pytest.raises(GenboundError, match="splits module 0, whose own code joins"):
        genbound.Problem(model, init_of(model), data, device_map={"": 0, "0.inner.2": 1})


def test_files_that_hold_no_map_are_refused(tmp_path):
    path = tmp_path / "map.json"
    for content in ("", "[]", "{}", '{"0": 1.5}', '{"0": null}', "[" * 100_000, '{"a": 0, "a": 1}'):
        path.write_text(content)
        with pytest.raises(GenboundError, match="--device-map"):
            read_device_map(str(path))
    path.write_text('{"": "cpu"}')
    assert read_device_map(str(path)) == {"": "cpu"} and read_device_map("auto") == "auto"
    with pytest.raises(GenboundError, match="give auto, or a JSON file"):
        read_device_map(str(tmp_path / "none.json"))


def test_ranks_have_devices_of_their_own_or_none():
    _refuse_shared([("a", "0,1"), ("a", "2, 3"), ("b", "0,1")])
    for everywhere in ([("a", ""), ("a", "")], [("a", "0,1"), ("a", "1,2")]):
        with pytest.raises(GenboundError, match="has none of its own: start one process"):
            _refuse_shared(everywhere)


# -- what is pretended ------------------------------------------------------------------------------------------------


def test_pretended_devices_refuse_what_real_ones_refuse():
    with PretendedDevices(2):
        a, b = torch.ones(3, device="cuda:0"), torch.ones(3).to("cuda:1")
        for wrong in (lambda: a + b, lambda: a + torch.ones(3), lambda: torch.stack([a[0], b[0]]), lambda: a.sum() + b):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            a.numpy()
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            torch.zeros(1, device="cuda:2")
        assert (a + torch.tensor(1.0)).device == a[torch.arange(2)].device == torch.zeros_like(a).device == a.device
        assert a.cpu().device.type == "cpu" and (a.cpu() + torch.ones(3)).tolist() == [2, 2, 2]


def test_gradients_of_what_was_moved_are_moved_back():
    with PretendedDevices(2):
        w = torch.ones(3, device="cuda:0", requires_grad=True)
        value = (w**2).to("cuda:1") * torch.ones(3, device="cuda:1")
        (gradient,) = torch.autograd.grad(value.sum(), w, create_graph=True)
        (second,) = torch.autograd.grad(gradient.sum(), w)
        assert gradient.device == second.device == w.device and second.tolist() == [2, 2, 2]
