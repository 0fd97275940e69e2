"""Labels that are names have the training samples' numbers in held-out samples, in whatever format these are."""

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from genbound.data import Reader, load_data
from genbound.errors import GenboundError

NAMES = ["ant", "bee", "cat"]


class Words:
    """A tokenizer of one token a word."""

    eos_token_id = pad_token_id = pad_token_type_id = 0
    padding_side, model_max_length, is_fast = "right", 16, True

    def __call__(self, texts, pairs, **_):
        lists = [text if isinstance(text, list) else text.split() for text in texts]
        encoded = {"input_ids": [[len(word) for word in words] for words in lists]}
        return type("Encoded", (dict,), {"word_ids": lambda self, row: list(range(len(lists[row])))})(encoded)


def written(tmp_path, form, names):
    """The SPEC of samples with these labels, in a file of a form."""
    file = tmp_path / f"{form}-{len(names)}"
    if form == "npz":
        np.savez(f"{file}.npz", x=np.ones((len(names), 2)), y=np.array(names))
        return f"npz:{file}.npz"
    if form == "webdataset":
        with tarfile.open(f"{file}.tar", "w") as shard:
            for k, name in enumerate(names):
                for ending, content in (("png", png(k)), ("cls", name.encode())):
                    member = tarfile.TarInfo(f"{k}.{ending}")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
        return f"webdataset:{file}.tar"
    if form == "imagefolder":
        for name in names:
            (file / name).mkdir(parents=True)
            (file / name / "0.png").write_bytes(png(0))
        return f"imagefolder:{file}"
    if form == "hf images":
        datasets = pytest.importorskip("datasets", reason="datasets is not installed")
        rows = datasets.Dataset.from_dict({"image": [{"bytes": png(0)}] * len(names), "label": names})
        rows.cast_column("image", datasets.Image()).save_to_disk(str(file))
        return f"hf:{file}"
    (tmp_path / "0.png").write_bytes(png(0))
    row = {
        "csv images": lambda name: {"s": "0.png", "y": name}, "csv texts": lambda name: {"s": "a b", "y": name},
        "words": lambda name: {"s": ["a", "b"], "y": [name, name]},
        "tokens": lambda name: {"input_ids": [1, 2], "labels": name},
        "labelled tokens": lambda name: {"input_ids": [1, 2], "labels": [name, name]},
    }[form]  # fmt: skip
    if form.startswith("csv"):
        file.write_text("s,y\n" + "".join(",".join(row(name).values()) + "\n" for name in names))
        return f"csv:{file}?{'image' if 'images' in form else 'text'}=s&label=y"
    file.write_text("\n".join(json.dumps(row(name)) for name in names))
    return f"jsonl:{file}" + ("?text=s&label=y" if form == "words" else "")


def png(grey):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed").new("RGB", (2, 2), (grey,) * 3)
    image.save(stream := io.BytesIO(), "png")
    return stream.getvalue()


FORMS = [
    "npz", "imagefolder", "csv images", "csv texts", "words", "tokens", "labelled tokens", "webdataset", "hf images"
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_held_out_samples_have_the_numbers_of_the_training_samples(form, tmp_path):
    training = load_data(written(tmp_path, form, NAMES), Reader(Words()))
    reader = replace(Reader(Words()), label2id=training.label2id)
    for other in ("npz", "tokens", form):
        found = load_data(written(tmp_path, other, NAMES[1:]), reader).batch([0, 1]).targets
        assert torch.equal(found.view(2, -1)[:, 0], torch.tensor([1, 2])), (form, other)
    with pytest.raises(GenboundError, match="label 'dog' is none of"):
        load_data(written(tmp_path, form, ["dog"]), reader)


@pytest.mark.parametrize("form", FORMS)
def test_labels_have_the_numbers_that_the_model_gives_them(form, tmp_path):
    samples = load_data(written(tmp_path, form, NAMES[:2]), Reader(Words(), label2id={"cat": 0, "ant": 1, "bee": 2}))
    assert samples.batch([0, 1]).targets.view(2, -1)[:, 0].tolist() == [1, 2]
    assert dict(samples.label2id) == {"cat": 0, "ant": 1, "bee": 2}


STARS = {str(star): star - 1 for star in range(1, 6)}


def of_stars(tmp_path, form, stars):
    """Labels of jsonl are whole numbers, those of ``names`` text; so those of npz."""
    file, text = tmp_path / "stars", form.endswith("names")
    labels = [str(star) for star in stars] if text else stars
    if form.startswith("npz"):
        np.savez(f"{file}.npz", x=np.ones((len(stars), 2)), y=np.array(labels))
        return f"npz:{file}.npz"
    if form == "csv":
        file.write_text("s,y\n" + "".join(f"a b,{star}\n" for star in stars))
        return f"csv:{file}?text=s&label=y"
    words = form.startswith("words")
    rows = [{"s": ["a"], "y": [y]} if words else {"s": "a b", "y": y} for y in labels]
    file.write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{file}?text=s&label=y"


@pytest.mark.parametrize("form", ["csv", "jsonl", "jsonl names", "words", "words names", "npz", "npz names"])
def test_numbers_that_are_names_of_other_classes_mean_the_same_in_every_format(form, tmp_path):
    reader = Reader(Words(), label2id=STARS)

    def read(stars, reader=reader):
        return load_data(of_stars(tmp_path, form, stars), reader).batch(range(len(stars))).targets.flatten().tolist()

    if form in ("jsonl", "words", "npz"):
        with pytest.raises(GenboundError, match=r"label 2 may be class 2 or the model's name '2', which is class 1"):
            read([3, 3, 2])
    else:
        assert read([3, 3, 2]) == [2, 2, 1]
    if "names" not in form:
        assert read([0, 4, 2]) == [0, 4, 2]  # 0 is no name, so that these can only be classes
        assert read([3, 2], Reader(Words(), label2id={str(k): k for k in range(6)})) == [3, 2]
        assert read([3, 2], Reader(Words(), label2id={f"LABEL_{k}": k for k in range(6)})) == [3, 2]


def test_numbers_of_classes_that_the_data_set_names_are_its_own(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    rows = datasets.Dataset.from_dict({"text": ["a b"] * 3, "label": ["3", "3", "2"]})
    rows.cast_column("label", datasets.ClassLabel(names=[*STARS])).save_to_disk(str(tmp_path / "set"))
    samples = load_data(f"hf:{tmp_path}/set", Reader(Words(), label2id=STARS))
    assert samples.batch(range(3)).targets.tolist() == [2, 2, 1]
