"""Files to tensors, and tensors to names."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from genbound.checkpoints.alignment import Signature, align
from genbound.checkpoints.names import strip_prefixes
from genbound.checkpoints.state_file import read_state
from genbound.errors import GenboundError


def state():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).state_dict()


def test_formats_agree(tmp_path):
    save_file(state(), tmp_path / "a.safetensors")
    torch.save(state(), tmp_path / "b.pt")
    torch.save({"state_dict": state(), "epoch": 1}, tmp_path / "c.pth")
    torch.save({"model": {"state_dict": state()}}, tmp_path / "d.ckpt")
    for name in ("a.safetensors", "b.pt", "c.pth", "d.ckpt"):
        tensors = read_state(tmp_path / name).tensors
        assert tensors.keys() == state().keys()
        assert all(torch.equal(tensors[key], value) for key, value in state().items())


def test_directory_single_and_sharded(tmp_path):
    single, sharded = tmp_path / "single", tmp_path / "sharded"
    single.mkdir(), sharded.mkdir()
    save_file(state(), single / "model.safetensors")
    (single / "config.json").write_text('{"model_type": "x"}')
    names = list(state())
    weight_map = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({n: state()[n] for n in names if weight_map[n] == shard}, sharded / shard)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    one, two = read_state(single), read_state(sharded)
    assert one.tensors.keys() == two.tensors.keys()
    assert one.config == {"model_type": "x"} and two.config is None
    assert read_state(single / "model.safetensors").config == one.config
    assert one.provenance == {"path": str(single), "sha256": one.sha256}


def test_digest_is_that_of_the_bytes(tmp_path):
    import hashlib

    save_file(state(), tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    assert read_state(tmp_path / "model.safetensors").sha256 == hashlib.sha256(content).hexdigest()
    before = read_state(tmp_path).sha256
    (tmp_path / "notes.txt").write_text("does not count")
    assert read_state(tmp_path).sha256 == before
    (tmp_path / "config.json").write_text("{}")
    assert read_state(tmp_path).sha256 != before


def test_strip_prefixes():
    expected = ["fc.weight", "model.body.weight"]
    assert strip_prefixes(expected, expected) == {name: name for name in expected}
    for wrapper in ("module.", "_orig_mod.", "module.model.", "model._orig_mod.module."):
        assert strip_prefixes([wrapper + "fc.weight"], expected) == {wrapper + "fc.weight": "fc.weight"}
    assert strip_prefixes(["body.weight"], expected) == {"body.weight": "model.body.weight"}
    assert strip_prefixes(["model._orig_mod.body.weight"], expected) == {
        "model._orig_mod.body.weight": "model.body.weight"
    }
    assert strip_prefixes(["fc.bias"], expected) == {}
    assert strip_prefixes(["encoder.w"], ["bert.encoder.w"], "bert.") == {"encoder.w": "bert.encoder.w"}
    assert strip_prefixes(["module.a", "model.a"], ["a"]) == {}  # ambiguous


def test_align_head_and_buffers():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    signature, ckpt, head = Signature.of(model), state(), ("2.weight", "2.bias")
    init = {name: value for name, value in ckpt.items() if not name.startswith("2.") and "num_batches" not in name}
    init["old_head.weight"] = torch.zeros(9, 4)
    found = align(signature, ckpt, init, head, "init")
    assert found.new_head == head and found.unused_init == ("old_head.weight",)
    assert found.matched == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert align(signature, ckpt, ckpt, head, "init").new_head == ()
    assert align(signature, ckpt, ckpt, head, "zero").new_head == head


@pytest.mark.parametrize(
    "side, name",
    [("CKPT", "0.weight"), ("INIT", "0.weight"), ("INIT", "1.running_mean"), ("CKPT", "2.weight")],
)
@pytest.mark.parametrize("change", ["missing", "shape"])
def test_align_refuses(side, name, change):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    both = {"CKPT": state(), "INIT": state()}
    if change == "missing":
        del both[side][name]
    else:
        both[side][name] = torch.zeros(9)
    with pytest.raises(GenboundError, match=f"^{side} .*{name}"):
        align(Signature.of(model), both["CKPT"], both["INIT"], ("2.weight", "2.bias"), "init")


def test_a_model_smaller_than_its_checkpoint_is_refused():
    with pytest.raises(GenboundError, match="2.weight"):
        align(Signature.of(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))), state(), state())


def test_tied_weights_that_differ_in_the_file():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2, bias=False)
            self.b = nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight

    signature = Signature.of(Tied())
    assert list(signature.params) == ["a.weight"] and signature.aliases == {"b.weight": "a.weight"}
    one = {"b.weight": torch.ones(2, 2)}
    assert align(signature, one, one).ckpt == {"a.weight": "b.weight"}
    with pytest.raises(GenboundError, match="ties"):
        align(signature, one | {"a.weight": torch.zeros(2, 2)}, one)
