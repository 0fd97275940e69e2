"""Samples in every form reach the model as the plain tensors would.

The tokenizer and the image settings are the checkpoint's own.
"""

import json

import numpy as np
import pytest
import torch
from small_checkpoints import Net, images, nudge
from transformers_formats import bert, gpt2, vit

import genbound
from genbound.data import Reader, load_data
from genbound.data.image_transforms import make_transform
from genbound.errors import GenboundError
from genbound.finetune.start import build_start

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
PIL = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A real tokenizer of 50 words: special tokens, pairs, and words that fall into two pieces."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij", *(f"##{letter}" for letter in "abcdefghij")]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=16,
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save_pretrained(folder)
    return made, folder


TEXTS = [("a b c", "d"), ("ab", "c d e"), ("a b c d e f", "g"), ("j", "a"), ("c c c", "b b")]
LABELS = [0, 2, 1, 1, 0]


def text_case(tmp_path, tokenizer, **options):
    case = bert(tmp_path, **options)
    for file in tokenizer[1].iterdir():
        (case.ckpt / file.name).write_bytes(file.read_bytes())
    return case


def losses_of(case, spec, **options):
    problem = genbound.load(case.ckpt, case.init, data=spec, batch_size=2, **case.options, **options)
    return genbound.measure(problem, "losses"), problem


@torch.no_grad()
def true_losses(model, tokenizer, texts, labels):
    """One sample at a time, so that nothing is padded."""
    found = []
    for text, label in zip(texts, labels, strict=True):
        encoded = tokenizer(*([text] if isinstance(text, str) else text), return_tensors="pt")
        found.append(torch.nn.functional.cross_entropy(model(**encoded).logits, torch.tensor([label])).item())
    return found


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "saved", "folder", "streamed"])
def test_texts(form, tmp_path, tokenizer):
    case = text_case(tmp_path, tokenizer)
    rows = [{"one": a, "two": b, "label": label} for (a, b), label in zip(TEXTS, LABELS, strict=True)]
    query = "text=one&text_pair=two&label=label"
    if form == "csv":
        (tmp_path / "t.csv").write_text(
            "one,two,label\n" + "".join(f"{r['one']},{r['two']},{r['label']}\n" for r in rows)
        )
        spec = f"csv:{tmp_path}/t.csv?{query}"
    elif form == "jsonl":
        (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
        spec = f"jsonl:{tmp_path}/t.jsonl?{query}"
    else:
        datasets = pytest.importorskip("datasets", reason="datasets is not installed")
        table = datasets.Dataset.from_list(rows)
        if form == "parquet":
            table.to_parquet(str(tmp_path / "t.parquet"))
            spec = f"parquet:{tmp_path}/t.parquet?{query}"
        elif form == "saved":
            datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "set")
            spec = f"hf:{tmp_path}/set?split=train&{query}"
        else:
            (tmp_path / "set").mkdir()
            table.to_parquet(str(tmp_path / "set" / "train-0.parquet"))
            spec = f"hf:{tmp_path}/set?split=train&{query}" + ("&streaming=yes&samples=5" if form == "streamed" else "")
    expected = true_losses(case.model, tokenizer[0], TEXTS, LABELS)
    found, problem = losses_of(case, spec)
    assert found["train_loss"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert found["train_loss_per_token"] is None
    assert problem.data.batch([0, 1]).inputs["attention_mask"].sum(1).tolist() == [7, 8]


def test_cut_texts_are_told(tmp_path, tokenizer):
    case = text_case(tmp_path, tokenizer, config={"max_position_embeddings": 20})
    for name, lengths in (("train", (14, 15, 25, 3)), ("test", (3, 25))):  # words; with [CLS] and [SEP] 16 are whole
        rows = (f"{' '.join('a' * length)},{i % 3}" for i, length in enumerate(lengths))
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows, ""]))
    spec, held_out = (f"csv:{tmp_path}/{name}.csv?text=text&label=label" for name in ("train", "test"))

    def said(data, **options):
        problem = genbound.load(case.ckpt, case.init, data=data, **case.options, **options)
        return [remark.partition(" (")[0] for remark in problem.remarks if "texts" in remark]

    assert said(spec, test_data=held_out) == [
        "2 of the 4 measured texts are cut to 16 tokens",
        "1 of the first 2 held-out texts are cut to 16 tokens",
    ]
    assert said(f"{spec}&max_length=17") == ["1 of the 4 measured texts are cut to 17 tokens"]
    assert said(f"{spec}&samples=1") == []
    with pytest.raises(GenboundError, match="20 positions: cut texts to them with max_length=20 behind the data"):
        said(f"{spec}&max_length=32")


def test_names_of_classes(tmp_path, tokenizer):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    names = datasets.ClassLabel(names=["no", "yes", "perhaps"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    table = datasets.Dataset.from_dict({"text": [a for a, _ in TEXTS], "label": LABELS}, features=features)
    table.save_to_disk(tmp_path / "set")
    samples = load_data(f"hf:{tmp_path}/set", Reader(tokenizer[0]))
    assert samples.batch(range(5)).targets.tolist() == LABELS


def test_a_saved_part_is_no_other_one(tmp_path, tokenizer):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    columns = {"text": [a for a, _ in TEXTS], "label": LABELS}
    for name in ("validation", None):
        split = None if name is None else datasets.NamedSplit(name)
        datasets.Dataset.from_dict(columns, split=split).save_to_disk(tmp_path / f"of {name}")
    for given in ("", "?split=validation", "?split=val"):
        assert len(load_data(f"hf:{tmp_path}/of validation{given}", Reader(tokenizer[0]))) == len(TEXTS)
    assert len(load_data(f"hf:{tmp_path}/of None", Reader(tokenizer[0]))) == len(TEXTS)
    for name, own in (("validation", "the split validation alone"), ("None", "one part without a name")):
        with pytest.raises(GenboundError, match=f"no split 'test'; it is {own}: leave"):
            load_data(f"hf:{tmp_path}/of {name}?split=test", Reader(tokenizer[0]))


def test_labels_of_words(tmp_path, tokenizer):
    case = text_case(tmp_path, tokenizer, head="TokenClassification")
    words, tags = [["a", "bc", "d"], ["e"], ["ab", "cd"]], [[0, 1, 2], [1], [2, 0]]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"w": w, "t": t}) for w, t in zip(words, tags, strict=True)))
    found, problem = losses_of(case, f"jsonl:{tmp_path}/t.jsonl?text=w&label=t")
    # "bc" is the pieces b ##c: only the first bears the label.
    assert problem.data.batch([0]).targets.tolist() == [[-100, 0, 1, -100, 2, -100]]
    sums, counts = [], []
    for row, labels in zip(words, tags, strict=True):
        encoded = tokenizer[0](row, is_split_into_words=True, return_tensors="pt")
        first = [i for i, w in enumerate(encoded.word_ids()) if w is not None and w not in encoded.word_ids()[:i]]
        with torch.no_grad():
            scores = case.model(**encoded).logits[0, first]
        sums.append(torch.nn.functional.cross_entropy(scores, torch.tensor(labels), reduction="sum").item())
        counts.append(len(labels))
    assert found["train_loss"] == pytest.approx(np.mean([s / c for s, c in zip(sums, counts, strict=True)]), rel=1e-5)
    assert found["train_loss_per_token"] == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
    assert abs(found["train_loss"] - found["train_loss_per_token"]) > 1e-4


@pytest.mark.parametrize("form", ["text", "tokens"])
def test_next_tokens(form, tmp_path, tokenizer):
    case = gpt2(tmp_path, "LMHeadModel")
    for file in tokenizer[1].iterdir():
        (case.ckpt / file.name).write_bytes(file.read_bytes())
    texts = [a for a, _ in TEXTS]
    if form == "text":
        (tmp_path / "t.csv").write_text("text\n" + "\n".join(texts) + "\n")
        spec = f"csv:{tmp_path}/t.csv?text=text"
    else:
        rows = [{"input_ids": tokenizer[0](text)["input_ids"]} for text in texts]
        (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({**row, "labels": row["input_ids"]}) for row in rows))
        spec = f"jsonl:{tmp_path}/t.jsonl"
    found, _ = losses_of(case, spec)
    expected = []
    for text in texts:
        ids = tokenizer[0](text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected.append(case.model(input_ids=ids, labels=ids).loss.item())
    assert found["train_loss"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_regression_and_several_labels(tmp_path, tokenizer):
    number = (
        text_case(tmp_path / "r", tokenizer, config={"num_labels": 1, "problem_type": "regression"})
        if (tmp_path / "r").mkdir() is None
        else None
    )
    (tmp_path / "t.csv").write_text("s,v,p,q,r\na b,0.5,1,0,1\nc,-1.25,0,0,1\nd e f,3,1,1,0\n")
    found, problem = losses_of(number, f"csv:{tmp_path}/t.csv?text=s&label=v")
    assert problem.loss.name == "squared_error" and problem.data.batch([0, 1, 2]).targets.tolist() == [0.5, -1.25, 3.0]
    (tmp_path / "m").mkdir()
    several = text_case(tmp_path / "m", tokenizer, config={"problem_type": "multi_label_classification"})
    found, problem = losses_of(several, f"csv:{tmp_path}/t.csv?text=s&label=p,q,r")
    assert problem.loss.name == "multi_label"
    expected = []
    for text, label in (("a b", [1.0, 0, 1]), ("c", [0.0, 0, 1]), ("d e f", [1.0, 1, 0])):
        with torch.no_grad():
            scores = several.model(**tokenizer[0](text, return_tensors="pt")).logits
        expected.append(torch.nn.functional.binary_cross_entropy_with_logits(scores, torch.tensor([label])).item())
    assert found["train_loss"] == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize("kind", [None, "multi_label_classification"])
def test_a_transformers_model_with_one_label(kind, tmp_path, tokenizer):
    """Labels 0 and 1 are those of a classifier, unless the config says that the model was trained for numbers."""
    case = text_case(tmp_path, tokenizer, config={"num_labels": 1, "problem_type": kind})
    (tmp_path / "t.csv").write_text("s,v,w\na b,1,0.5\nc,0,-1.25\nd e f,1,3\n")
    found, problem = losses_of(case, f"csv:{tmp_path}/t.csv?text=s&label=v")
    assert problem.loss.name == "binary_cross_entropy"
    expected = []
    for text, label in (("a b", 1.0), ("c", 0.0), ("d e f", 1.0)):
        with torch.no_grad():
            score = case.model(**tokenizer[0](text, return_tensors="pt")).logits[0]
        expected.append(torch.nn.functional.binary_cross_entropy_with_logits(score, torch.tensor([label])).item())
    assert found["train_loss"] == pytest.approx(np.mean(expected), rel=1e-5)
    if kind is None:
        assert losses_of(case, f"csv:{tmp_path}/t.csv?text=s&label=w")[1].loss.name == "squared_error"


def folder_of_images(tmp_path, classes=("ant", "bee", "cat")):
    made = {}
    stream = np.random.default_rng(0)
    for name in classes:
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(2):
            array = stream.integers(0, 256, (9 + i, 12, 3), dtype=np.uint8)
            PIL.fromarray(array).save(tmp_path / "pictures" / name / f"{i}.png")
            made[name, i] = array
    (tmp_path / "pictures" / ".hidden").mkdir()
    return made


def test_images_through_the_checkpoints_own_settings(tmp_path):
    case = vit(tmp_path)
    by_pillow = getattr(transformers, "ViTImageProcessorPil", transformers.ViTImageProcessor)  # in older versions
    processor = by_pillow(size={"height": 8, "width": 8}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])
    processor.save_pretrained(case.ckpt)
    made = folder_of_images(tmp_path)
    found, problem = losses_of(case, f"imagefolder:{tmp_path}/pictures")
    assert problem.data.batch(range(6)).targets.tolist() == [0, 0, 1, 1, 2, 2]
    arrays = [made[name, i] for name in ("ant", "bee", "cat") for i in range(2)]
    pixels = torch.from_numpy(
        np.stack([processor(PIL.fromarray(a), return_tensors="np")["pixel_values"][0] for a in arrays])
    )
    assert torch.allclose(problem.data.batch(range(6)).inputs["pixel_values"], pixels)
    with torch.no_grad():
        scores = case.model(pixel_values=pixels).logits
    expected = torch.nn.functional.cross_entropy(scores, torch.tensor([0, 0, 1, 1, 2, 2])).item()
    assert found["train_loss"] == pytest.approx(expected, rel=1e-5)
    raw = np.stack([made[name, 0] for name in ("ant", "bee", "cat")])
    np.savez(tmp_path / "i.npz", x=raw, y=np.arange(3))
    _, problem = losses_of(case, f"npz:{tmp_path}/i.npz")
    assert torch.allclose(problem.data.batch(range(3)).inputs["pixel_values"], pixels[::2])


def test_images_in_a_table(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    made = folder_of_images(tmp_path)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    table = datasets.Dataset.from_dict(
        {"image": [str(tmp_path / "pictures" / "ant" / f"{i}.png") for i in range(2)], "label": [0, 1]},
        features=features,
    )
    table.save_to_disk(tmp_path / "set")
    batch = load_data(f"hf:{tmp_path}/set?size=8").batch([0, 1])
    (tmp_path / "t.csv").write_text("f,l\npictures/ant/0.png,0\npictures/ant/1.png,1\n")
    again = load_data(f"csv:{tmp_path}/t.csv?image=f&label=l&size=8").batch([0, 1])
    assert torch.equal(batch.inputs, again.inputs) and batch.targets.tolist() == again.targets.tolist() == [0, 1]
    plain = make_transform({})(PIL.fromarray(made["ant", 0]))
    assert torch.allclose(plain, torch.from_numpy(made["ant", 0]).permute(2, 0, 1) / 255.0)
    scaled = make_transform({"mean": [0.5, 0.5, 0.5], "std": [2.0, 2.0, 2.0]})(PIL.fromarray(made["ant", 0]))
    assert torch.allclose(scaled, (plain - 0.5) / 2)


def test_images_of_other_sizes_go_alone(tmp_path):
    folder_of_images(tmp_path)
    samples = load_data(f"imagefolder:{tmp_path}/pictures")
    assert [len(batch) for batch in samples.batches(range(6), 4)] == [1] * 6
    for wrong, words in (("?mean=1,2", "three numbers"), ("?size=0", "whole number"), ("?crop=3", "not understood")):
        with pytest.raises(GenboundError, match=words):
            load_data(f"imagefolder:{tmp_path}/pictures{wrong}")


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_architectures_by_name(library, tmp_path, monkeypatch):
    """The naming and the number of classes, with a stand-in for the library."""
    import sys
    import types

    asked = []

    def make(name, **given):
        if name != "tiny":
            raise RuntimeError(f"unknown model {name}")
        asked.append(given)
        return Net(given.get("num_classes", 10))

    fake = types.ModuleType(library)
    fake.create_model = fake.get_model = make
    fake.models = fake
    monkeypatch.setitem(sys.modules, library, fake)
    monkeypatch.setitem(sys.modules, f"{library}.models", fake)
    start = Net(10)
    tuned = nudge(Net(3))
    torch.save(start.state_dict(), tmp_path / "start.pth")
    (tmp_path / "tuned").mkdir()
    torch.save(tuned.state_dict(), tmp_path / "tuned" / "pytorch_model.bin")
    problem = genbound.load(tmp_path / "tuned", tmp_path / "start.pth", f"{library}:tiny", data=images())
    assert asked[-1]["num_classes"] == 3 and "counts as zero" in problem.provenance["head_note"]
    assert torch.equal(problem.params["fc.weight"], tuned.fc.weight)
    with pytest.raises(GenboundError, match="check the name"):
        genbound.load(tmp_path / "tuned", tmp_path / "start.pth", f"{library}:large", data=images())
    if library == "timm":
        (tmp_path / "tuned" / "config.json").write_text(
            '{"architecture": "tiny", "num_classes": 3, "pretrained_cfg": {}}'
        )
        assert (
            "timm tiny" in genbound.load(tmp_path / "tuned", tmp_path / "start.pth", data=images()).provenance["rule"]
        )
    monkeypatch.chdir(tmp_path)
    started = build_start("start.pth", f"{library}:tiny", 5, None, True, 0)
    assert asked[-1]["num_classes"] == 5 and started.spec == f"{library}:tiny"
    assert set(started.new) == {"fc.weight", "fc.bias"} and torch.equal(started.model.mix.weight, start.mix.weight)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, f"{library}.models", None)
    with pytest.raises(GenboundError, match=rf"genbound\[{library}\].*FILE.py"):
        genbound.load(tmp_path / "tuned", tmp_path / "start.pth", f"{library}:tiny", data=images())
