"""Data that do not fit the network: other floating-point numbers are cast, and the rest is refused in one line."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from genbound.errors import GenboundError
from genbound.finetune import Settings, finetune

pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("accelerate", reason="needs accelerate")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def build(outputs=3):
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs))


def words():
    return nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3))


def run(folder, name, x, y, model=build, **settings):
    torch.manual_seed(0)
    torch.save(model().state_dict(), folder / "start.pt")
    np.savez(folder / f"{name}.npz", x=x, y=y)
    return finetune(
        folder / "start.pt",
        f"npz:{folder}/{name}.npz",
        folder / name,
        model=model,
        settings=Settings(epochs=1, **settings),
    )


@pytest.mark.parametrize("kind", [np.float64, np.float16])
def test_numbers_of_another_precision(tmp_path, kind):
    x, y = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float16).astype(np.float32), np.arange(12) % 3
    found, expected = run(tmp_path, "other", x.astype(kind), y), run(tmp_path, "single", x, y)
    assert found["history"][0]["loss"] == pytest.approx(expected["history"][0]["loss"])
    assert json.loads((tmp_path / "other" / "run.json").read_text())["accuracy"] == expected["accuracy"]


@pytest.mark.parametrize(("outputs", "classes"), [(3, 5), (1, 3)])
def test_too_few_outputs(tmp_path, outputs, classes):
    x = np.zeros((12, 3), dtype=np.float32)
    with pytest.raises(GenboundError, match=f"gives .{outputs},. outputs .* {classes} classes"):
        run(tmp_path, "few", x, np.arange(12) % classes, lambda: build(outputs))
    assert not (tmp_path / "few").exists()


@pytest.mark.parametrize(
    ("x", "model"),
    [
        (np.zeros((12, 4), dtype=np.float32), build),  # another width
        (np.zeros((12, 3), dtype=np.uint8), build),  # another kind of numbers
        (np.eye(12, 2, dtype=np.int64) * 7, words),  # a token beyond the vocabulary
    ],
)
def test_samples_that_the_network_cannot_read(tmp_path, x, model):
    with pytest.raises(GenboundError, match="cannot read the samples"):
        run(tmp_path, "unfit", x, np.arange(12) % 3, model)


def test_observed_labels_that_are_no_numbers(tmp_path):
    np.save(tmp_path / "names.npy", np.array(list("abcabcabcabc")))
    with pytest.raises(GenboundError, match="cannot be read"):
        run(
            tmp_path,
            "names",
            np.zeros((12, 3), dtype=np.float32),
            np.arange(12) % 3,
            noise=f"labels:{tmp_path}/names.npy",
        )


def test_more_classes_said_than_outputs(tmp_path):
    """Also where no sample of the last ones is there."""
    torch.manual_seed(0)
    torch.save(build().state_dict(), tmp_path / "start.pt")
    np.savez(tmp_path / "few.npz", x=np.zeros((12, 3), dtype=np.float32), y=np.arange(12) % 3)
    with pytest.raises(GenboundError, match="gives .3,. outputs .* 5 classes"):
        finetune(tmp_path / "start.pt", f"npz:{tmp_path}/few.npz", tmp_path / "out", model=build, num_classes=5)


def normalised():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


@pytest.mark.parametrize(("batch_size", "left"), [(4, 1), (5, 3), (1, 1)])
def test_a_last_batch_that_cannot_be_normalised(tmp_path, batch_size, left):
    x, y = np.random.default_rng(0).normal(size=(13, 3)).astype(np.float32), np.arange(13) % 3
    if left > 1:
        run(tmp_path, "fits", x, y, normalised, batch_size=batch_size)
        return
    with pytest.raises(GenboundError, match="13 training samples .* leave a batch of one.* another --batch-size"):
        run(tmp_path, "alone", x, y, normalised, batch_size=batch_size)
    assert not (tmp_path / "alone").exists()
    run(tmp_path, "body", x, y, normalised, batch_size=batch_size, trained="head")  # normalises as in evaluation
    run(tmp_path, "layers", x, y, batch_size=batch_size)


@pytest.mark.parametrize("confusion", ["symmetric:0.2", "anchor", "dual-t"])
def test_a_matrix_for_fewer_classes_than_outputs(tmp_path, confusion):
    x, y = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32), np.arange(30) % 3
    with pytest.raises(
        GenboundError, match="gives 5 outputs .*, and F of --confusion .* for 3 classes: add --classes 5"
    ):
        run(tmp_path, "more", x, y, lambda: build(5), confusion=confusion)
    assert not (tmp_path / "more").exists()
    run(tmp_path, "plain", x, y, lambda: build(5))


@pytest.mark.parametrize("confusion", ["anchor", "dual-t"])
def test_a_matrix_is_estimated_with_a_factory_that_was_handed_over(tmp_path, confusion):
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    found = run(tmp_path, "given", x, x.argmax(1), confusion=confusion, estimation_epochs=40, lr=0.05)
    assert np.shape(found["confusion"]) == (3, 3)
