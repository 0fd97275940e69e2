"""Every road from a checkpoint's directory to code, walked with a file that would leave a mark if it were run."""

import builtins
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import genbound
from genbound.checkpoints import huggingface, vision
from genbound.checkpoints.architecture import build_pair
from genbound.cli.main import main
from genbound.data import load_data
from genbound.errors import GenboundError

MARK = "open({!r}, 'w').close()\n"
SIZES = {
    "vocab_size": 20, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 4,
    "max_position_embeddings": 8,
}  # fmt: skip


@pytest.fixture
def bert(tmp_path, monkeypatch):
    """``bert(config changes)``: a directory of transformers with a Python file beside the weights."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("asks on the terminal"))
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES)).save_pretrained("d")
    Path("d/evil.py").write_text(
        MARK.format(str(tmp_path / "ran")) + "from transformers import *\nclass C(BertConfig):\n    model_type='own'\n"
        "class M(BertForSequenceClassification):\n    config_class=C\nclass T(BertTokenizer):\n    pass\n"
    )
    content = json.loads(Path("d/config.json").read_text())

    def change(**given):
        Path("d/config.json").write_text(json.dumps(content | given))
        return tmp_path / "d"

    yield change
    assert not Path(tmp_path, "ran").exists()


AUTO = {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M", "AutoModel": "evil.M"}


@pytest.mark.parametrize("auto", [None, "hf:AutoModelForSequenceClassification", "hf:AutoModel", "hf:M"])
@pytest.mark.parametrize("model_type", ["bert", "own"])
def test_auto_map(auto, model_type, bert, capsys):
    """It is left alone where transformers has the class itself, and refused elsewhere."""
    folder = bert(auto_map=AUTO, model_type=model_type, architectures=["M"])
    arguments = ["inspect", str(folder), str(folder), *(["--model", auto] if auto else [])]
    status = main(arguments)
    assert status == 2 or (model_type, auto) in [
        ("bert", "hf:AutoModelForSequenceClassification"),
        ("bert", "hf:AutoModel"),
    ]
    assert "unexpected" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["Trainer", "pipeline", "os", "utils", "BertConfig", "BertTokenizer", "__loader__", "is_torch_available"]
)
def test_only_model_classes_are_called(name, bert):
    folder = bert(architectures=[name])
    with pytest.raises(GenboundError, match="has no"):
        build_pair(folder, folder)


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize("value", ["kernels-community/evil", "./evil", "flash_attention_2", {"": "a/b"}])
def test_kernels_of_attention_are_pinned(key, value, bert):
    folder = bert(**{key: value})
    try:
        model = build_pair(folder, folder).model
    except GenboundError:
        return
    assert model.config._attn_implementation in ("eager", "sdpa")


def test_tokenizers_run_no_code(bert):
    folder = bert()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    for said in (
        {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "tokenizer_class": "T"},
        {"tokenizer_class": "BertJapaneseTokenizer", "mecab_kwargs": {"mecab_option": "-d ."}},
    ):
        (folder / "tokenizer_config.json").write_text(json.dumps(said))
        with pytest.raises(GenboundError):
            huggingface.load_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"auto_map": {"AutoImageProcessor": "evil.T"}, "image_processor_type": "T"})
    )
    with pytest.raises(GenboundError):
        huggingface.load_image_processor(folder)


def test_the_hub_is_offline_while_a_checkpoint_is_read():
    pytest.importorskip("transformers", reason="transformers is not installed")
    import huggingface_hub.constants as hub

    before = hub.HF_HUB_OFFLINE
    with huggingface.quiet():
        assert hub.HF_HUB_OFFLINE
    assert hub.HF_HUB_OFFLINE == before


ARGUMENTS = [
    {"checkpoint_path": "evil.pth"}, {"pretrained": True}, {"pretrained_cfg": {"url": "x"}}, {"cache_dir": "x"},
    {"pretrained_cfg_overlay": {"file": "x"}}, {"depth": 10**9}, {"act_layer": "../x"}, {"x": {"y": 1}},
]  # fmt: skip


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=lambda a: next(iter(a)))
def test_timm_reads_no_other_files(arguments, monkeypatch):
    made = types.SimpleNamespace(create_model=lambda *_, **__: pytest.fail("called"))
    monkeypatch.setitem(sys.modules, "timm", made)
    with pytest.raises(GenboundError, match="model_args"):
        vision.vision_model("timm", "resnet18", {}, arguments)


@pytest.mark.parametrize("name", ["hf-hub:a/b", "hf_hub:a/b", "local-dir:x", "a/b", "../x"])
def test_timm_takes_names_alone(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=lambda *_, **__: pytest.fail("called")))
    with pytest.raises(GenboundError, match="plain name"):
        vision.vision_model("timm", name, {})


def adapter(base: Path, **given) -> Path:
    """A LoRA adapter of the base, with its config changed."""
    from safetensors.torch import save_file

    folder = base.parent / "adapter"
    folder.mkdir(exist_ok=True)
    layer = "base_model.model.bert.encoder.layer.0.attention.self.query"
    save_file(
        {f"{layer}.lora_A.weight": torch.ones(2, 4), f"{layer}.lora_B.weight": torch.ones(4, 2)},
        folder / "adapter_model.safetensors",
    )
    said = {"peft_type": "LORA", "task_type": None, "r": 2, "lora_alpha": 2, "target_modules": ["query"]} | given
    said |= {"auto_mapping": {"base_model_class": "BertForSequenceClassification", "parent_library": "evil"}}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize(
    "given",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "evil"},
        {"peft_type": "XLORA", "adapters": {"0": "x"}},
        {"layer_replication": [[0, 10**9]]},
        {"r": 10**9},
        {"rank_pattern": {"query": 10**9}},
        {"target_modules": r"(([a-z.]+)+)+!"},
        {"target_modules": "(", "exclude_modules": "x"},
        {"rank_pattern": {r"(([a-z.]+)+)+!": 2}},
    ],
    ids=str,
)
def test_adapters_bring_nothing_else_in(given, bert, monkeypatch):
    pytest.importorskip("peft", reason="peft is not installed")
    monkeypatch.setattr("genbound.checkpoints.config_limits.SECONDS", 2)
    base = bert()
    with pytest.raises(GenboundError, match="adapter_config.json"):
        build_pair(adapter(base, **given), base)


def test_the_plain_adapter_is_read(bert):
    pytest.importorskip("peft", reason="peft is not installed")
    base = bert()
    assert "LORA" in build_pair(adapter(base), base).rule


def test_the_current_directory_is_not_imported_from(tmp_path):
    """Somebody who stands in a downloaded directory runs none of its files."""
    for name in ("yaml", "tabulate", "transformers", "click", "numpy"):
        (tmp_path / f"{name}.py").write_text(MARK.format(str(tmp_path / "ran")))
    done = subprocess.run([sys.executable, "-m", "genbound", "list"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_script_beside_a_data_set_is_not_run(tmp_path):
    pytest.importorskip("datasets", reason="datasets is not installed")
    folder = tmp_path / "set"
    folder.mkdir()
    script = (
        MARK.format(str(tmp_path / "ran")) + "import datasets\nclass Set(datasets.GeneratorBasedBuilder):\n    pass\n"
    )
    for name in ("set.py", "dataset.py", "__init__.py"):
        (folder / name).write_text(script)
    rows = [{"input_ids": [1, 2], "label": 0}, {"input_ids": [3], "label": 1}]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "README.md").write_text("---\nbuilder_name: set\nconfigs:\n- config_name: default\n---\n")
    try:
        load_data(f"hf:{folder}?label=label")
    except GenboundError as error:
        assert "\n" not in str(error)
    (folder / "train.jsonl").unlink()
    with pytest.raises(GenboundError):
        load_data(f"hf:{folder}?label=label")
    assert not (tmp_path / "ran").exists()


def test_no_entry_point_is_loaded(tmp_path):
    """A distribution that offers itself in every group that might be asked for, on the path of a process."""
    groups = (
        "genbound",
        "genbound.plugins",
        "genbound.quantities",
        "genbound.bounds",
        "genbound.data",
        "console_scripts",
    )
    info = tmp_path / "evil-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("".join(f"[{group}]\nevil = evil:f\n" for group in groups))
    (tmp_path / "evil.py").write_text(MARK.format(str(tmp_path / "ran")) + "def f(*_): pass\n")
    code = "from genbound.cli.main import main; main(['list']); main(['list', 'options'])"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    assert done.returncode == 0 and not (tmp_path / "ran").exists(), done.stderr
    package = Path(genbound.__file__).parent
    asks = [file for file in package.rglob("*.py") if "entry_points" in file.read_text(encoding="utf-8")]
    assert not asks
