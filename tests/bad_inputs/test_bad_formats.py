"""Refusals of checkpoints and data in the formats of other programs, at the command line: status 2 and one line."""

import json
import struct
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from damaged import make, net, refused, state
from safetensors.torch import save_file


def scripted():
    module = torch.jit.script(net())
    torch.jit.save(module, "bad.pt")


def legacy_bomb():
    torch.save({"w": torch.ones(10)}, "bad.pt", _use_new_zipfile_serialization=False)
    content = Path("bad.pt").read_bytes()
    for end in (b"N", b"\x85"):  # the number of elements of the storage, and the shape
        content = content.replace(b"K\n" + end, b"J\x00\x00\x00\x7f" + end)
    Path("bad.pt").write_bytes(content)


def zip_bomb():
    torch.save({"w": torch.zeros(4_000_000)}, "big.pt")
    with zipfile.ZipFile("big.pt") as old, zipfile.ZipFile("bad.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))


def endless():
    """A view without strides claims more values than any memory holds."""
    torch.save({"0.weight": torch.zeros(1).expand(10**7, 10**6)}, "bad.pt")


def header(**entries):
    text = json.dumps(entries).encode()
    Path("bad.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))


CHECKPOINTS = {
    "TorchScript": ("bad.pt", scripted, ["TorchScript", "state_dict"]),
    "other archive": (
        "bad.pt", lambda: zipfile.ZipFile("bad.pt", "w").writestr("a.txt", "x"), ["zip archive", "state_dict"],
    ),
    "announces more": ("bad.pt", legacy_bomb, ["announces", "save it again"]),
    "zip bomb": ("bad.pt", zip_bomb, ["zip bomb", "save it again"]),
    "endless view": ("bad.pt", endless, ["claims more values", "save it again"]),
    "LFS pointer": (
        "bad.safetensors", lambda: make("bad.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
        ["git lfs pull"],
    ),
    "header beyond the file": (
        "bad.safetensors", lambda: make("bad.safetensors", struct.pack("<Q", 1 << 50) + b"{}"),
        ["safetensors", "again"],
    ),
    "tensor beyond the file": (
        "bad.safetensors", lambda: header(w={"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}),
        ["safetensors", "again"],
    ),
    "overlapping tensors": (
        "bad.safetensors",
        lambda: header(
            a={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            b={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        ),
        ["safetensors", "again"],
    ),
    "Keras": ("bad.h5", lambda: make("bad.h5", "x"), ["Keras", "safetensors"]),
    "ONNX": ("bad.onnx", lambda: make("bad.onnx", "x"), ["ONNX", "safetensors"]),
    "llama.cpp": ("bad.gguf", lambda: make("bad.gguf", "x"), ["llama.cpp", "safetensors"]),
    "several": ("bad.pt", lambda: torch.save({"gen": state(), "disc": state()}, "bad.pt"), ["several", "--entry gen"]),
    "GPTQ": (
        "bad.safetensors",
        lambda: save_file(state(**{"0.qweight": torch.ones(2, dtype=torch.int32)}), "bad.safetensors"),
        ["GPTQ", "dequantise"],
    ),
    "bitsandbytes": (
        "bad.pt", lambda: torch.save(state(**{"0.SCB": torch.ones(2)}), "bad.pt"), ["bitsandbytes", "dequantise"],
    ),
    "torch.ao": (
        "bad.pt", lambda: torch.save(state(**{"0._packed_params": torch.ones(2)}), "bad.pt"),
        ["torch.ao", "dequantise"],
    ),
    "torch.ao, dynamic": (
        "bad.pt", lambda: torch.save(state(**{"0.scale": torch.ones(()), "0.zero_point": torch.zeros(())}), "bad.pt"),
        ["torch.ao", "dequantise"],
    ),
    "unmerged adapter": (
        "bad.pt",
        lambda: torch.save(
            {"0.base_layer.weight": torch.ones(5, 4), "0.lora_A.default.weight": torch.ones(2, 4)}, "bad.pt"
        ),
        ["scaling", "save_pretrained"],
    ),
    "more layers": (
        "bad.pt", lambda: torch.save(state(**{"4.weight": torch.ones(2, 2)}), "bad.pt"),
        ["4.weight", r"--ignore '4\.\*'"],
    ),
    "optimizer alone": (
        "bad.pt", lambda: torch.save({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}, "bad.pt"),
        ["no state dict"],
    ),
    "distributed": ("d", lambda: make("d/__0_0.distcp", "x"), ["dcp_to_torch"]),
    "DeepSpeed": ("d", lambda: make("d/zero_to_fp32.py"), ["zero_to_fp32.py"]),
    "Trainer's output": ("d", lambda: (make("d/checkpoint-20/x"), make("d/checkpoint-100/x")), ["checkpoint-100"]),
    "Flax": ("d", lambda: make("d/flax_model.msgpack", "x"), ["another framework", "save_pretrained"]),
    "shard elsewhere": (
        "d", lambda: make("d/model.safetensors.index.json", '{"weight_map": {"a": "/etc/passwd"}}'),
        ["outside its directory"],
    ),
    "shard above": (
        "d", lambda: make("d/model.safetensors.index.json", '{"weight_map": {"a": "..\\\\x"}}'),
        ["outside its directory"],
    ),
    "nested index": ("d", lambda: make("d/model.safetensors.index.json", "[" * 100_000), ["index of shards"]),
    "empty adapter": ("d", lambda: make("d/adapter_config.json", "{}"), ["adapter_model.safetensors"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_checkpoints(name, folder, capsys):
    path, write, words = CHECKPOINTS[name]
    write()
    refused(capsys, "inspect", path, "good.safetensors", "--model", "nets.py:net", words=words)


def adapter(**config):
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["0"], **config}
    make("d/adapter_config.json", json.dumps(content))
    ab = {"lora_A.weight": torch.ones(2, 4), "lora_B.weight": torch.ones(5, 2)}
    save_file({f"base_model.model.0.{name}": value for name, value in ab.items()}, "d/adapter_model.safetensors")


ADAPTERS = {
    "unknown": (dict(peft_type="NOSUCH"), ["NOSUCH", "update peft"]),
    "prompt": (
        dict(peft_type="PROMPT_TUNING", num_virtual_tokens=2, task_type="CAUSAL_LM"),
        ["PROMPT_TUNING", "no distance|does not fit"],
    ),
    "target": (dict(target_modules=["nowhere"]), ["does not fit", "is INIT its base"]),
    "rank": (dict(r=3), ["does not fit", "is INIT its base"]),
    "other layer": (dict(target_modules=["2"]), ["lacks|does not fit|no place", "INIT its base"]),
    "rebased": (dict(init_lora_weights="pissa"), ["pissa", "path_initial_model_for_weight_conversion"]),
    "wrong kind": (dict(r="two"), ["does not fit|adapter"]),
    "lost biases": (dict(bias="lora_only"), ["no bias of 0", "older versions of PEFT"]),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(name, folder, capsys):
    pytest.importorskip("peft", reason="peft is not installed")
    config, words = ADAPTERS[name]
    adapter(**config)
    refused(capsys, "inspect", "d", "good.safetensors", "--model", "nets.py:net", words=words)


def test_adapters_and_their_bases(folder, capsys, monkeypatch):
    pytest.importorskip("peft", reason="peft is not installed")
    adapter(base_model_name_or_path="someone/model")
    refused(capsys, "inspect", "d", "--model", "nets.py:net", words=["someone/model", "hf download"])
    refused(
        capsys, "inspect", "good.safetensors", "d", "--model", "nets.py:net", words=["base model it was trained on"]
    )
    refused(capsys, "inspect", "d", "good.safetensors", words=["config.json", "--model FILE.py:factory"])
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(capsys, "inspect", "d", "good.safetensors", "--model", "nets.py:net", words=[r"genbound\[peft\]"])


def test_pairs(folder, capsys):
    refused(capsys, "inspect", "good.safetensors", words=["INIT is not given"])
    refused(
        capsys,
        "inspect",
        "good.safetensors",
        "good.safetensors",
        "--entry",
        "ema",
        "--model",
        "timm:",
        words=["not understood"],
    )
    torch.save({"model": state(), "ema": state()}, "two.pt")
    refused(capsys, "inspect", "two.pt", "good.safetensors", "--entry", "emma", words=["no entry 'emma'", "ema"])
    given = ["inspect", "good.safetensors", "good.safetensors", "--model", "nets.py:net"]
    refused(capsys, *given, "--head-weights", "nothing.*", words=["matches no weight", "2.weight"])
    torch.save({name: value for name, value in state().items() if not name.startswith("0.")}, "less.pt")
    refused(capsys, "inspect", "good.safetensors", "less.pt", "--model", "nets.py:net", words=["lacks", "0.weight"])


VOCABULARY = {
    "wte.weight": torch.randn(8, 4, generator=torch.Generator().manual_seed(0)),
    "fc.weight": torch.ones(3, 4),
}


def test_another_vocabulary(folder, capsys):
    other = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    torch.save(VOCABULARY, "a.pt"), torch.save({**VOCABULARY, "wte.weight": other}, "b.pt")
    refused(capsys, "inspect", "b.pt", "a.pt", words=["vocabularies differ"])


SIDECARS = {
    "modle: x": ["unknown setting 'modle'", "model"],
    "num_data: many": ["num_data", "whole number"],
    "data: [1]": ["data", "must be a text"],
    "- a": ["name: value"],
    "a: &a [*a]": ["unknown setting"],
    "data: npz:nowhere.npz\nmodel: nets.py:net": ["no data file", "nowhere.npz"],
}


@pytest.mark.parametrize("content", SIDECARS)
def test_sidecars(content, folder, capsys):
    make("genbound.yaml", content)
    given = ["evaluate", "good.safetensors", "good.safetensors", "--trust-remote-code"]
    refused(capsys, *given, words=SIDECARS[content])


@pytest.mark.parametrize("library, spec", [("datasets", "hf:p"), ("PIL", "imagefolder:p")])
def test_missing_libraries(library, spec, folder, capsys, monkeypatch):
    make("p/a/a.png", "x")
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    given = ["evaluate", "good.safetensors", "good.safetensors", "--model", "nets.py:net", "--measures", "losses"]
    refused(
        capsys,
        *given,
        "--data",
        spec,
        words=[rf"pip install 'genbound\[{'images' if library == 'PIL' else library}\]'"],
    )


STRANGE = {
    "statistics": (
        "torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))",
        lambda model: dict(model.named_parameters()),
        ["running statistics", "model.state_dict"],
    ),
    "padding": ("Mixing()", lambda model: model.state_dict(), ["influence each other", "--batch-size 1"]),
    "decoder": ("Decoder()", lambda model: model.state_dict(), ["decoder_input_ids", "FILE.py:function"]),
}
STRANGE_NETS = """
import types, torch
class Mixing(torch.nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
    def forward(self, x):
        return super().forward(x) + x.sum()
class Decoder(torch.nn.Linear):
    config = types.SimpleNamespace(is_encoder_decoder=True)
    def __init__(self):
        super().__init__(4, 3)
    def forward(self, x, decoder_input_ids):
        return super().forward(x)
def net():
    return NET
"""


@pytest.mark.parametrize("name", STRANGE)
def test_strange_networks(name, folder, capsys):
    expression, saved, words = STRANGE[name]
    make("strange.py", STRANGE_NETS.replace("NET", expression))
    space: dict = {}
    exec(Path("strange.py").read_text(), space)
    torch.save(saved(space["net"]()), "bad.pt")
    given = ["evaluate", "bad.pt", "bad.pt", "--model", "strange.py:net", "--measures", "losses"]
    refused(capsys, *given, "--data", "npz:good.npz", words=words)


LOSSES = {
    "no_such_loss": ["unknown loss", "cross_entropy"],
    "nets.py:absent": ["no function 'absent'"],
    "nowhere.py:f": ["no file"],
    "nets.py:net": ["cannot be computed|takes"],
    "squared_error": [r"\(4,\)", r"\(4, 3\)", "a label for every output", "cross_entropy"],
    "multi_label": [r"\(4,\)", r"\(4, 3\)", "a label for every output", "cross_entropy"],
}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss, folder, capsys):
    given = ["evaluate", "good.safetensors", "good.safetensors", "--model", "nets.py:net", "--measures", "losses"]
    refused(capsys, *given, "--data", "npz:good.npz", "--loss", loss, words=LOSSES[loss])


def test_remote_code_needs_its_flag(folder, capsys):
    pytest.importorskip("transformers", reason="transformers is not installed")
    config = {
        "model_type": "own",
        "architectures": ["Own"],
        "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Own"},
    }
    make("d/config.json", json.dumps(config))
    make("d/own.py", "raise SystemExit('executed')")
    save_file(net().state_dict(), "d/model.safetensors")
    refused(capsys, "inspect", "d", "good.safetensors", words=["--trust-remote-code"])
