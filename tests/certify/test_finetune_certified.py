"""``genbound finetune --certify``: the same balls for algorithm and certificate, and every choice paid for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import genbound
from genbound.certify import certified_run as certify
from genbound.certify.candidates import ALIKE, FORMS, SHARES, Candidate, Tried, least
from genbound.cli.main import main
from genbound.errors import GenboundError
from genbound.finetune.run import finetune
from genbound.finetune.settings import Settings
from genbound.posterior.groups import unseen

pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("accelerate", reason="needs accelerate")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh())
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.body(x))

def make():
    return Net()
"""
RECIPE = Settings(epochs=8, batch_size=32, lr=0.03)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nets.py").write_text(NET)
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(900, 6, generator=stream)
    y = (x[:, 0] + x[:, 1] + 0.5 * torch.randn(900, generator=stream) > 0).long()
    np.savez(tmp_path / "train.npz", x=x[:400].numpy(), y=y[:400].numpy())
    np.savez(tmp_path / "test.npz", x=x[400:].numpy(), y=y[400:].numpy())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh())
    torch.save({f"body.{name}": value for name, value in body.state_dict().items()}, tmp_path / "init.pt")
    return tmp_path


def certified(folder, out="out", **more):
    said = {"model": f"{folder / 'nets.py'}:make", "test_data": f"npz:{folder / 'test.npz'}", "settings": RECIPE} | more
    return certify.finetune_certified(folder / "init.pt", f"npz:{folder / 'train.npz'}", folder / out, **said)


def tensors(folder):
    return load_file(Path(folder) / "finetuned" / "model.safetensors")


def test_every_choice_is_paid_for(folder, monkeypatch, capsys):
    """On the command line, for the head alone: delta in shares, draws that are used once, the samples that count."""
    seeds, plain_evaluate = [], certify.evaluate

    def spy(problem, rows, seed, **more):
        seeds.append(seed)
        return plain_evaluate(problem, rows, seed, **more)

    monkeypatch.setattr(certify, "evaluate", spy)
    model, out = f"{folder / 'nets.py'}:make", folder / "out"
    said = [
        "finetune", str(folder / "init.pt"), "--model", model, "--data", f"npz:{folder / 'train.npz'}", "--out",
        str(out), "--epochs", "1", "--lr", "0.02", "--trained", "head", "--certify",
    ]  # fmt: skip
    assert main(said) == 0
    printed = capsys.readouterr().out
    assert "| pac_bayes_certificate" in printed and "≤ 0." in printed and "delta / 2 each" in printed

    found = json.loads((out / "run.json").read_text())["certificate"]
    tried = {name: value for name, value in found["tried"].items() if value is not None}
    assert tried[found["chosen"]] <= min(tried.values()) + ALIKE and len(found["tried"]) == len(SHARES) + 1
    assert len(set(seeds)) == len(seeds) and seeds[-1] == certify.FINAL_SEED
    assert min(seeds) == certify.FINAL_SEED  # a later evaluation has none of the draws that the network was chosen by

    stored = genbound.load_results(out / "certificate")
    assert stored.config["delta"] == pytest.approx(0.05 / 2) and found["shares_of_delta"] == 2
    summary = stored.quantities["gibbs_error"]
    assert (summary["num_data"], summary["num_prior"]) == (200, 200) == (found["num_data"], found["num_prior"])
    assert set(summary["groups"]) == {"fc.weight", "fc.bias"}  # running statistics stay, too

    # the checkpoint knows its prior, and gives the same certificate again
    problem = genbound.load(out / "finetuned", model=model)
    seen = {int(line) for line in (out / "prior_samples.txt").read_text().split()}
    assert problem.prior.samples == seen and set(unseen(problem)) == set(range(400)) - seen
    again = genbound.evaluate(problem, ["pac_bayes_certificate"], certify.FINAL_SEED, delta=0.05 / 2)
    assert again.bounds["pac_bayes_certificate"].value == pytest.approx(found["pac_bayes_certificate"]["value"])


def test_of_certificates_that_are_alike_the_best_network_is_taken():
    def tried(value, error, noisy):
        return Tried(Candidate("all", 1.0), value, noisy, error, 0.0, "")

    low, close, far, none = tried(0.2, 0.1, 0.3), tried(0.209, 0.05, 0.9), tried(0.22, 0.0, 0.22), tried(None, 0.0, 9)
    assert least([low, close, far, none]) is close and least([far, low, none]) is low and least([none]) is None
    alike = tried(0.205, 0.055, 0.5)
    assert least([low, close, alike, far]) is alike


@pytest.mark.slow
def test_it_beats_the_certificate_of_plain_fine_tuning(folder):
    record = certified(folder)
    found = record["certificate"]
    model = f"{folder / 'nets.py'}:make"
    plain = finetune(
        folder / "init.pt", f"npz:{folder / 'train.npz'}", folder / "plain", model=model,
        test_data=f"npz:{folder / 'test.npz'}", settings=RECIPE,
    )  # fmt: skip
    usual = genbound.evaluate(
        genbound.load(folder / "plain" / "finetuned", model=model), ["pac_bayes_certificate"]
    ).bounds["pac_bayes_certificate"]
    assert found["pac_bayes_certificate"]["value"] < usual.value - 0.1
    assert record["accuracy"]["test"] > plain["accuracy"]["test"] - 0.01
    assert 1 - record["accuracy"]["test"] < found["pac_bayes_certificate"]["value"] < 0.5
    assert len(found["tried"]) == len(FORMS) * len(SHARES) + 1

    # which part moves was chosen by all samples: the logarithm of the number of parts is in the bound, now and later
    assert found["prior_choices"] == len(FORMS)
    for file in (folder / "out" / "certificate", None):
        results = genbound.load_results(file) if file else genbound.evaluate(
            genbound.load(folder / "out" / "finetuned", model=model), ["gibbs_error"]
        )  # fmt: skip
        summary = results.quantities["gibbs_error"]
        assert summary["log_union"] == pytest.approx(summary["num_groups"] * np.log(51) + np.log(len(FORMS)))


@pytest.mark.slow
def test_the_ball_of_the_algorithm_is_that_of_the_certificate(folder):
    """Its centre is the prior, its radius a share of the way there; and the prior never saw the other samples."""
    certified(folder)
    one, way = tensors(folder / "out" / "prior"), json.loads((folder / "out" / "prior" / "run.json").read_text())
    for candidate in (Candidate(form, share) for form in FORMS for share in SHARES):
        end = tensors(folder / "out" / "candidates" / candidate.name)
        for name, distance in way["distances"].items():
            assert (end[name] - one[name]).norm() <= candidate.share * distance * (1 + 1e-6)
        still = [name for name in end if torch.equal(end[name], one[name]) and end[name].is_floating_point()]
        assert still == ([name for name in end if name.startswith("body.") and "num_batches" not in name]
                         if candidate.form == "head" else [])  # fmt: skip

    # the same run on data with other labels at the others' places ends in the same prior
    seen = {int(line) for line in (folder / "out" / "prior_samples.txt").read_text().split()}
    arrays = dict(np.load(folder / "train.npz"))
    others = sorted(set(range(400)) - seen)
    arrays["y"][others] = 1 - arrays["y"][others]
    np.savez(folder / "train.npz", **arrays)
    certified(folder, "flipped")
    other = tensors(folder / "flipped" / "prior")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "more, said",
    [
        ({"settings": Settings(noise="symmetric:0.2")}, "--noise"),
        ({"settings": Settings(validation=0.1)}, "--validation"),
        ({"settings": Settings(radius="auto")}, "--radius auto"),
        ({"prior_share": 1.0}, "between 0 and 1"),
        ({"prior_share": 0.99}, "4 samples"),
        ({"prior_share": 0.001}, "none that the prior could see"),
        ({"delta": 0.0}, "between 0 and 1"),
    ],
)
def test_what_cannot_be_certified_is_refused(folder, more, said):
    with pytest.raises(GenboundError, match=said):
        certified(folder, **more)


def test_a_certified_run_and_a_plain_one_do_not_share_a_folder(folder):
    """And what it says of itself: distances from ``pretrained``, samples by their digest."""
    head = Settings(epochs=1, lr=0.02, trained="head")
    record = certified(folder, settings=head)
    data, model = f"npz:{folder / 'train.npz'}", f"{folder / 'nets.py'}:make"

    def plain(out):
        return finetune(folder / "init.pt", data, folder / out, model=model, settings=head)

    with pytest.raises(GenboundError, match="holds a run with other settings .certify: "):
        plain("out")
    stamp = (folder / "out" / "run.json").stat().st_mtime_ns
    assert certified(folder, settings=head)["certificate"] == record["certificate"]
    assert (folder / "out" / "run.json").stat().st_mtime_ns == stamp
    with pytest.raises(GenboundError, match="holds a run with other settings .certify: "):
        certified(folder, settings=head, delta=0.1)
    (folder / "out" / "settings.json").unlink()  # as runs of before were
    with pytest.raises(GenboundError, match="holds prior but no settings.json"):
        plain("out")
    plain("plain")
    with pytest.raises(GenboundError, match="holds a run with other settings .certify: "):
        certified(folder, "plain", settings=head)

    end, begin = tensors(folder / "out"), load_file(folder / "out" / "pretrained" / "model.safetensors")
    for name, distance in record["distances"].items():
        assert distance == pytest.approx((end[name].double() - begin[name].double()).norm().item(), rel=1e-5)
    assert record["distances"]["fc.weight"] > 0
