"""Every block of the pages runs, in a folder that has the files they name; a block that cannot says why in the page.

``<!-- not run: REASON -->`` above a block is for what needs data, machines or hours that a test has not. The tutorials
have a test of their own, for theirs build on each other from nothing.
"""

import glob
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import genbound
from genbound.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>.+?) -->\n+)?^```(?P<kind>console|python)\n(?P<text>.*?)^```$", re.M | re.S
)
PLAIN = "finetuned.safetensors pretrained.safetensors --model my_model.py:build --data npz:train.npz"
PLAIN += " --test-data npz:test.npz"
TEXT = "csv:train.csv?text=sentence&label=label"
# Of these a test need not run the lines: what they install or start is there, or is another test's.
ELSEWHERE = ("pip install", "make ")

MODEL = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3))
"""


def blocks(page):
    return [(found["why"], found["kind"], found["text"]) for found in BLOCK.finditer(page.read_text(encoding="utf-8"))]


RUN = [page for page in PAGES if any(not why for why, _, _ in blocks(page))]


def lines_of(text):
    return [line[2:] for line in text.replace("\\\n", " ").splitlines() if line.startswith("$ ")]


# -- the folder that the pages speak of -------------------------------------------------------------------------------


def save_text_model(folder, seed):
    """A checkpoint of Hugging Face with its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "good", "bad", "film", "a", "very"])}
    tokens = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1}
    model = BertForSequenceClassification(
        BertConfig(vocab_size=len(words), max_position_embeddings=16, hidden_dropout_prob=0.0, **sizes)
    )
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    ).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Plain checkpoints with arrays, checkpoints of Hugging Face with texts, and stored runs."""
    pytest.importorskip("transformers", reason="the pages measure a model of Hugging Face")
    folder = tmp_path_factory.mktemp("world")
    (folder / "baselines").mkdir()
    for name in ("my_model.py", "model.py", "nets.py"):
        (folder / name).write_text(MODEL)
    rng = np.random.default_rng(0)
    for name, num in (("train", 24), ("test", 12)):
        np.savez(folder / f"{name}.npz", x=rng.normal(size=(num, 4)).astype(np.float32), y=np.arange(num) % 3)
        rows = [f"{'good' if i % 2 else 'bad'}{' very' * (i % 3)} film,{i % 2}" for i in range(num)]
        (folder / f"{name}.csv").write_text("\n".join(["sentence,label", *rows]) + "\n")
    (folder / "seen.txt").write_text("\n".join(map(str, range(0, 24, 2))) + "\n")
    networks = {}
    with torch.random.fork_rng(devices=[]):
        for seed, name in enumerate(("pretrained", "finetuned", "a", "b", "c")):
            torch.manual_seed(seed)
            networks[name] = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3))
            save_file(networks[name].state_dict(), folder / f"{name}.safetensors")
        for seed, name in enumerate(("pretrained", "finetuned", "halfway")):
            save_text_model(folder / name, seed)
            shutil.copytree(folder / name, folder / "path" / "to" / name)
    data = np.load(folder / "train.npz"), np.load(folder / "test.npz")
    train, test = ((torch.from_numpy(part["x"]), torch.from_numpy(part["y"])) for part in data)
    measures = ["losses", "hessian_distance", "displacement_norm"]
    for name in "abc":
        problem = genbound.Problem(networks[name], networks["pretrained"].state_dict(), train, test_data=test)
        genbound.evaluate(problem, measures).save(folder / "runs" / name)
    shutil.copy(folder / "runs" / "a" / "results.json", folder / "baselines" / "a.json")
    checkpoint = folder / "runs" / "checkpoint"
    checkpoint.mkdir()
    shutil.copy(folder / "finetuned.safetensors", checkpoint / "model.safetensors")
    for name in ("nets.py", "train.npz", "test.npz"):
        shutil.copy(folder / name, checkpoint)
    return folder


@pytest.fixture
def world(prepared, tmp_path, monkeypatch):
    folder = tmp_path / "world"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    return folder


def names_of(page, world):
    """What a page's Python takes for granted, as the text around it says."""
    network = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3))
    train = np.load(world / "train.npz")
    x, y = torch.from_numpy(train["x"]), torch.from_numpy(train["y"])
    known = {
        "genbound": genbound, "model": network, "batches": [(x, y)], "x": x, "y": y, "data": [(x, y)],
        "init_state_dict": {name: weight + 0.1 for name, weight in network.state_dict().items()},
        "model_before_training": nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)),
        "optimizer": torch.optim.Adam(network.parameters()),
    }  # fmt: skip
    if page.stem in ("certificates", "checkpoints", "finetune"):
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
        lightning = pytest.importorskip("pytorch_lightning")
        from genbound.finetune.lightning_callback import LightningDistance
        from genbound.finetune.trainer_callback import DistanceCallback

        known |= {
            "transformers": transformers, "lightning": lightning, "DistanceCallback": DistanceCallback,
            "LightningDistance": LightningDistance, "rows": [{"x": row, "labels": 0} for row in x],
            "arguments": transformers.TrainingArguments(str(world / "out"), report_to=[], use_cpu=True),
            "checkpoints": lightning.callbacks.ModelCheckpoint(world / "out"),
        }  # fmt: skip
        if page.stem == "finetune":
            known["y"] = y % 10
            known["model"] = nn.Linear(4, 10)
            known["optimizer"] = torch.optim.Adam(known["model"].parameters())
    return known


# -- the tests --------------------------------------------------------------------------------------------------------


def run_command(line):
    """Run ``genbound …``: dots stand for the arguments that the page has shown, stars for files that are there."""
    words, wanted = [], shlex.split(line, comments=True)[1:]
    for before, word in zip(["", *wanted], wanted, strict=False):
        if word == "…":
            words += [TEXT] if before == "--data" else shlex.split(PLAIN)
        elif "*" in word and "=" not in word:
            words += sorted(found for found in glob.glob(word) if Path(found, "results.json").exists())
        else:
            words.append(word)
    return main(words)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the libraries that a page trains with
@pytest.mark.parametrize("page", RUN, ids=lambda path: path.stem)
def test_every_block_runs(page, world, capsys):
    for library in ("accelerate", "plotly"):
        pytest.importorskip(library, reason=f"a page needs {library}")
    names, num = names_of(page, world), 0
    with torch.random.fork_rng(devices=[]):
        for number, (why, kind, text) in enumerate(blocks(page), 1):
            if why:
                continue
            num += 1
            if kind == "python":
                names.setdefault("__name__", page.stem)
                exec(compile(text, f"{page.name}, block {number}", "exec"), names)
                continue
            for line in lines_of(text):
                if not line.startswith(ELSEWHERE):
                    assert line.startswith("genbound "), f"{page.name}, block {number}: {line}: say why it is not run"
                    assert run_command(line) == 0, f"{page.name}, block {number}: {line}: {capsys.readouterr().err}"
    assert num


def test_what_is_not_run_says_why():
    """A mark stands above a block and has a reason; what is run has none."""
    marks = sum(page.read_text(encoding="utf-8").count("<!-- not run:") for page in PAGES)
    reasons = [why for page in PAGES for why, _, _ in blocks(page) if why]
    assert len(reasons) == marks and all(len(why) > 10 for why in reasons)


def test_every_target_that_a_page_names_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for _, kind, text in blocks(page):
            for line in lines_of(text) if kind == "console" else ():
                if line.startswith("make "):
                    assert re.search(rf"^{line.split()[1]}:", makefile, re.M), f"{page.name}: {line}"
