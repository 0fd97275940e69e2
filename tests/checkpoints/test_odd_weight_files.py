"""Files of weights with something beside the network, or with names that fit in two ways: what is measured is true."""

import json

import pytest
import torch
from safetensors.torch import save_file

from genbound.checkpoints.architecture import build_pair
from genbound.errors import GenboundError


@pytest.fixture
def save(tmp_path):
    def write(content, name):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def weights(*names, seed=0, rows=4):
    stream = torch.Generator().manual_seed(seed)
    return {name: torch.randn(rows, 4, generator=stream) for name in names}


def moved(state, by=0.1):
    return {name: value + by for name, value in state.items()}


def distances(pair):
    return {name: round(float((value - pair.init[name]).norm()), 4) for name, value in pair.params.items()}


def test_a_matrix_beside_the_entry_of_the_network_is_not_the_network(save):
    start = weights("a.weight", "b.weight")
    files = [
        save({"model": state, "prototypes": torch.full((2, 3), float(i))}, f"{i}.pt")
        for i, state in enumerate([start, moved(start)])
    ]
    assert distances(build_pair(files[1], files[0])) == {"a.weight": 0.4, "b.weight": 0.4}
    assert distances(build_pair(files[1], save(start, "plain.pt"))) == {"a.weight": 0.4, "b.weight": 0.4}


def test_weights_without_dots_are_the_network_beside_its_average(save):
    start = {"weight": torch.ones(3, 2)}
    ckpt = save({**moved(start), "ema": moved(start, 0.5)}, "a.pt")
    assert distances(build_pair(ckpt, save(start, "b.pt"))) == {"weight": round(0.1 * 6**0.5, 4)}


@pytest.mark.parametrize("lead", ["model.", "module.model.", "backbone."])
@pytest.mark.parametrize("rows", [4, 3])
def test_a_layer_inside_and_one_behind_of_the_same_name(save, lead, rows):
    """The outer ``fc`` is new; INIT's is that of the network inside."""
    start = weights("a.weight", "b.weight", "fc.weight")
    outer = weights("fc.weight", seed=1, rows=rows)
    around = lead.replace("model.", "").replace("backbone.", "")
    ckpt = {lead + name: value for name, value in moved(start).items()} | {around + "fc.weight": outer["fc.weight"]}
    pair = build_pair(save(ckpt, "a.pt"), save(start, "b.pt"))
    inner = {lead + name: 0.4 for name in start}
    assert distances(pair) == inner | {around + "fc.weight": round(float(outer["fc.weight"].norm()), 4)}
    assert pair.head_note.endswith(f": {around}fc.weight")


def test_the_network_inside_is_measured_as_it_is_alone(save):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.fc = (torch.nn.Linear(4, 4, bias=False) for _ in range(2))

    start = weights("a.weight", "fc.weight")
    ckpt = {f"model.{name}": value for name, value in moved(start).items()} | weights("fc.weight", seed=1)
    pair = build_pair(save(ckpt, "a.pt"), save(start, "b.pt"), model=Net)
    assert distances(pair) == {"a.weight": 0.4, "fc.weight": 0.4}
    assert pair.alignment.unused_lines() == ["CKPT has 1 tensor (fc.weight) that the model does not use"]


TIED = "embed.weight", "lm_head.weight"


@pytest.mark.parametrize("init", ["tied", "copied", "once"])
@pytest.mark.parametrize("ckpt", ["tied", "copied"])
def test_a_tied_weight_that_was_copied_is_one_layer(save, ckpt, init):
    start = weights("embed.weight", "mix.weight")
    start["lm_head.weight"] = start["embed.weight"]
    end = moved(start)
    end["lm_head.weight"] = end["embed.weight"]
    kinds = {
        "tied": lambda state: state,
        "copied": lambda state: {name: value.clone() for name, value in state.items()},
        "once": lambda state: {name: value for name, value in state.items() if name != "lm_head.weight"},
    }
    pair = build_pair(save(kinds[ckpt](end), "a.pt"), save(kinds[init](start), "b.pt"))
    assert distances(pair) == {"embed.weight": 0.4, "mix.weight": 0.4}
    assert not pair.head_note


@pytest.mark.parametrize("which", ["untied at the start", "frozen", "zeros"])
def test_equal_weights_that_are_not_tied_stay_layers(save, which):
    start = weights(*TIED)
    if which != "untied at the start":
        start["lm_head.weight"] = start["embed.weight"].clone()
    end = {name: torch.zeros(4, 4) if which == "zeros" else start["embed.weight"].clone() for name in TIED}
    pair = build_pair(save(end, "a.pt"), save(start, "b.pt"))
    assert list(pair.params) == list(TIED)


@pytest.mark.parametrize("side", ["ckpt", "init"])
def test_what_is_told_to_be_ignored_leaves_no_layer_out(save, side):
    """A mask in every block, as old files of GPT-2 have it: the blocks' own weights stay."""
    start = weights(*(f"h.{i}.attn.c.weight" for i in range(3)), "wte.weight")
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 5, 5) for i in range(3)}
    ckpt, init = moved(start), start
    files = {"ckpt": ckpt | masks if side == "ckpt" else ckpt, "init": init | masks if side == "init" else init}
    a, b = save(files["ckpt"], "a.pt"), save(files["init"], "b.pt")
    with pytest.raises(GenboundError) as error:
        build_pair(a, b, model=blocks if side == "ckpt" else None)
    pattern = str(error.value).split("--ignore '")[1].split("'")[0]
    assert distances(build_pair(a, b, ignore=pattern)) == dict.fromkeys(start, 0.4)


def blocks():
    net = torch.nn.Module()
    net.wte = torch.nn.Embedding(4, 4)
    net.h = torch.nn.ModuleList(
        torch.nn.ModuleDict({"attn": torch.nn.ModuleDict({"c": torch.nn.Linear(4, 4, bias=False)})}) for _ in range(3)
    )
    return net


def test_a_buffer_of_another_size_is_refused(save):
    """The network of the file projects to other features; it was run with the buffer of the factory."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(4, 3)
            self.register_buffer("projection", torch.eye(4))

    start = Net().state_dict()
    ckpt = {**start, "projection": torch.ones(5, 4)}
    with pytest.raises(GenboundError, match=r"CKPT is of another architecture: 1 shape \(projection \(5, 4\) instead"):
        build_pair(save(ckpt, "a.pt"), save(start, "b.pt"), model=Net)
    pair = build_pair(save(start, "a.pt"), save(ckpt, "b.pt"), model=Net)
    assert torch.equal(pair.model.projection, torch.eye(4))


def test_a_layer_of_another_name_is_no_new_head(save):
    start = weights("b.weight", "c.weight", "out.weight")
    ckpt = moved({"a.weight": start["b.weight"], "b.weight": start["c.weight"], "out.weight": start["out.weight"]})
    files = save(ckpt, "a.pt"), save(start, "b.pt")
    with pytest.raises(GenboundError, match=r"CKPT has a.weight and INIT c.weight, of one.*--head-weights 'a\.\*'"):
        build_pair(*files)
    assert build_pair(*files, head_weights="a.*").head == ("a.weight",)
    start["c.weight"] = torch.ones(3, 4)  # a head that was replaced by another
    assert build_pair(files[0], save(start, "b.pt")).head == ("a.weight",)


@pytest.mark.parametrize("policy", ["exclude", "zero"])
def test_a_head_that_nothing_names_is_not_said_to_be_left_out(save, policy):
    start = weights("net.a.weight", "net.fc.weight")
    files = save(moved(start), "a.pt"), save(start, "b.pt")
    with pytest.raises(GenboundError, match="nothing says which weights are the head"):
        build_pair(*files, head=policy)
    assert build_pair(*files, head=policy, head_weights="net.fc.*").head == ("net.fc.weight",)


def test_shards_and_index_of_two_checkpoints(tmp_path, save):
    start = weights("a.weight", "b.weight", "c.weight")
    folder, init = tmp_path / "shards", save(start, "b.pt")
    folder.mkdir()
    end = moved(start)
    index = {"a.weight": "1.safetensors", "b.weight": "1.safetensors", "c.weight": "2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    save_file({name: end[name] for name in ("a.weight", "b.weight")}, folder / "1.safetensors")
    save_file({"c.weight": end["c.weight"], "b.weight": torch.zeros(4, 4)}, folder / "2.safetensors")
    assert distances(build_pair(folder, init)) == dict.fromkeys(start, 0.4)
    save_file({"b.weight": end["b.weight"]}, folder / "2.safetensors")
    with pytest.raises(GenboundError, match=r"2.safetensors' lacks c.weight, which model.safetensors.index.json"):
        build_pair(folder, init)
