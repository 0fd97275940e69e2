"""What is said about two checkpoints: the user is heeded first, ``genbound.yaml`` beside CKPT second, defaults last."""

import dataclasses

import pytest
import torch

import genbound
from genbound.checkpoints.architecture import build_pair, load_pair
from genbound.checkpoints.pair_spec import PairSpec
from genbound.checkpoints.sidecar import SETTINGS
from genbound.cli.main import evaluate, inspect
from genbound.errors import GenboundError
from genbound.evaluation.loading import EvaluationSpec
from genbound.finetune.start import build_start

NET = "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))\n"


@pytest.fixture
def folder(tmp_path):
    """A checkpoint with two sets of weights, a criterion beside them and a sidecar that says what to do with it all."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    torch.save(net.state_dict(), tmp_path / "start.pt")
    moved = {name: value + 1 for name, value in net.state_dict().items()}
    averaged = {name: value + 2 for name, value in net.state_dict().items()}
    extra = {"loss_weight.scale": torch.ones(2, 2)}
    torch.save({"model": moved | extra, "model_ema": averaged | extra}, tmp_path / "tuned.pt")
    (tmp_path / "nets.py").write_text(NET)
    genbound.save_spec(
        tmp_path / "tuned.pt", model="nets.py:net", init="start.pt", entry="model_ema", ignore="loss_weight.*",
        head="zero", head_weights="1.*", num_data=77,
    )  # fmt: skip
    return tmp_path


def test_every_setting_of_a_sidecar_is_a_field_and_an_option():
    names = {field.name for field in dataclasses.fields(EvaluationSpec)}
    users_own = {"unlabelled"}  # no checkpoint says which inputs its training has not seen
    assert names == {*SETTINGS, "ckpt", "trust_remote_code", "beside", "prior_unused", *users_own}
    for command, arguments in ((evaluate, {"paths"}), (inspect, {"ckpt", "init"})):  # paths: CKPT… INIT
        given = {option.name for option in command.params}
        assert arguments | names - {"beside", "prior_unused", "ckpt", "init"} <= given


def test_what_the_user_leaves_open_is_as_the_sidecar_says(folder):
    spec = EvaluationSpec(folder / "tuned.pt", head="exclude").completed()
    assert (spec.entry, spec.ignore, spec.head_weights, spec.num_data) == (
        "model_ema",
        ("loss_weight.*",),
        ("1.*",),
        77,
    )
    assert spec.head == spec.head_policy == "exclude"
    assert (spec.loss_range, spec.layers, spec.trust_remote_code) == (None, None, False)
    assert spec.model == f"{folder}/nets.py:net" and spec.model_origin == "genbound.yaml"
    assert spec.beside == {"model", "init", "entry", "ignore", "head_weights", "num_data"}
    assert spec.completed() == spec


def test_what_nobody_says_has_its_default(tmp_path):
    spec = PairSpec(tmp_path / "absent.pt", model="nets.py:net").completed()
    assert (spec.head_policy, spec.model_origin, spec.beside) == ("init", "--model", frozenset())


def test_patterns_come_with_commas_or_one_by_one():
    spec = PairSpec("a", head_weights="fc.*, head.* ,", ignore=["x.*", "y"])
    assert (spec.head_weights, spec.ignore) == (("fc.*", "head.*"), ("x.*", "y"))


@pytest.mark.parametrize(
    ("model", "expected"),
    [(None, ""), ("hf", ""), ("hf:AutoModel", "AutoModel"), ("timm:resnet18", None), ("nets.py:hf", None), (len, None)],
)
def test_the_class_of_transformers_that_is_asked_for(model, expected):
    assert PairSpec("a", model=model).hub_class == expected


@pytest.mark.parametrize("policy", ["", "seed:", "seed:-1", "Zero", "init "])
def test_unknown_head_policies_are_refused(folder, policy):
    with pytest.raises(GenboundError, match="head policy"):
        PairSpec("a", head=policy)
    genbound.save_spec(folder / "tuned.pt", head=policy)
    with pytest.raises(GenboundError, match="head policy"):
        PairSpec(folder / "tuned.pt").completed()


def test_a_spec_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PairSpec("a").head = "zero"


def test_all_ways_in_heed_the_sidecar_alike(folder):
    start = torch.load(folder / "start.pt")
    pairs = [build_pair(folder / "tuned.pt"), load_pair(PairSpec(folder / "tuned.pt").completed())]
    problem = genbound.load(folder / "tuned.pt")
    for params, init in [(pair.params, pair.init) for pair in pairs] + [(problem.params, problem.init)]:
        assert all(torch.equal(params[name], start[name] + 2) for name in start)  # model_ema, criterion left out
        assert torch.equal(init["0.weight"], start["0.weight"])
        assert not init["1.weight"].any()  # head: zero
    assert "genbound.yaml" in pairs[0].rule and problem.provenance["rule"] == pairs[0].rule


def test_the_user_wins_in_every_way_in(folder):
    start = torch.load(folder / "start.pt")
    for found in (
        build_pair(folder / "tuned.pt", entry="model", head="init"),
        genbound.load(folder / "tuned.pt", entry="model", head="init"),
    ):
        assert torch.equal(found.params["0.weight"], start["0.weight"] + 1)
        assert torch.equal(found.init["1.weight"], start["1.weight"])


def test_fine_tuning_reads_its_start_as_the_sidecar_says(folder):
    """The criterion beside the network is no part of it, and the averaged weights are those that were measured."""
    start = torch.load(folder / "start.pt")
    found = build_start(folder / "tuned.pt", None, 2, None, False, 0)
    assert torch.equal(found.model[0].weight, start["0.weight"] + 2)
