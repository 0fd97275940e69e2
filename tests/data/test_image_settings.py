"""Images become what the checkpoint's settings say, arrays and files alike; grey values of 16 bits keep their range."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

import genbound
from genbound.data.image_transforms import make_transform
from genbound.data.load_data import load_data
from genbound.data.spec import Reader
from genbound.errors import GenboundError

PIL = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
ARRAYS = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
TIMM = {
    "input_size": [3, 8, 8], "crop_pct": 0.8, "interpolation": "bicubic",
    "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]
}  # fmt: skip


@pytest.fixture
def npz(tmp_path):
    np.savez(tmp_path / "i.npz", x=ARRAYS, y=np.arange(3))
    return f"npz:{tmp_path}/i.npz"


def by_hand(array, size, scaled, resample, mean, std):
    """Shorter side to ``scaled``, the middle cut out, normalised."""
    wide = int(scaled * 30 / 20)
    image = np.asarray(PIL.fromarray(array).resize((wide, scaled), resample), dtype=np.float64)
    top, left = round((scaled - size) / 2), round((wide - size) / 2)
    image = image[top : top + size, left : left + size] / 255
    return ((image - np.array(mean)) / np.array(std)).transpose(2, 0, 1)


def pixels(spec, **reader):
    return load_data(spec, Reader(**reader)).batch(range(3)).inputs


def test_arrays_take_size_and_colours(npz):
    found = pixels(f"{npz}?size=8&mean=0.4,0.5,0.6&std=0.2,0.3,0.4")
    wanted = np.stack([by_hand(a, 8, 8, 2, TIMM["mean"], TIMM["std"]) for a in ARRAYS])
    assert found.shape == (3, 3, 8, 8) and np.allclose(found, wanted, atol=1e-6)


def test_arrays_and_files_are_prepared_as_timm_does(npz, tmp_path):
    found = pixels(npz, image_settings=TIMM)
    assert np.allclose(found, np.stack([by_hand(a, 8, 10, 3, TIMM["mean"], TIMM["std"]) for a in ARRAYS]), atol=1e-6)
    for k, array in enumerate(ARRAYS):
        (tmp_path / "folder" / str(k)).mkdir(parents=True)
        PIL.fromarray(array).save(tmp_path / "folder" / str(k) / "i.png")
    assert torch.equal(pixels(f"imagefolder:{tmp_path}/folder", image_settings=TIMM), found)
    own_size = pixels(f"{npz}?size=6", image_settings=TIMM)
    assert np.allclose(own_size, np.stack([by_hand(a, 6, 6, 3, TIMM["mean"], TIMM["std"]) for a in ARRAYS]), atol=1e-6)


def test_options_beside_a_processor_leave_the_rest_to_it(npz):
    transformers = pytest.importorskip("transformers")
    by_pillow = getattr(transformers, "ViTImageProcessorPil", transformers.ViTImageProcessor)  # in older versions
    processor = by_pillow(size={"height": 12, "width": 12}, image_mean=TIMM["mean"], image_std=TIMM["std"])
    found = pixels(f"{npz}?size=8", images=processor)["pixel_values"]
    assert np.allclose(found, np.stack([by_hand(a, 8, 8, 2, TIMM["mean"], TIMM["std"]) for a in ARRAYS]), atol=1e-6)
    found = pixels(f"{npz}?size=8&mean=0.1,0.1,0.1", images=processor)["pixel_values"]
    assert np.allclose(found, np.stack([by_hand(a, 8, 8, 2, [0.1] * 3, TIMM["std"]) for a in ARRAYS]), atol=1e-6)


def test_arrays_that_are_no_images_take_no_size(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 3, 8, 8), dtype=np.float32), y=np.arange(3))
    with pytest.raises(GenboundError, match=r"size are for images, uint8 arrays N x H x W x 3.*float32 \(3, 3, 8, 8\)"):
        load_data(f"npz:{tmp_path}/x.npz?size=224")


@pytest.mark.parametrize(
    "settings",
    [
        {"input_size": [3, 8, 9]}, {"input_size": "8"}, {**TIMM, "crop_pct": 1e9}, {**TIMM, "crop_mode": "border"},
        {**TIMM, "interpolation": "random"}, {"mean": [0.1, "a", 0.2]}, {"std": [0.1, 0.0, 0.2]},
    ],
)  # fmt: skip
def test_settings_that_are_not_known_are_refused_with_the_mend(settings):
    with pytest.raises(GenboundError, match=r"prepared in a way that is not known here.*size=, mean= and std="):
        make_transform({}, settings=settings)


class Net(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 2, 3), nn.Linear(2, num_classes)

    def forward(self, x):
        return self.fc(self.conv(x).tanh().mean((2, 3)))


def library(monkeypatch, name):
    """A stand-in for timm or torchvision."""
    fake = types.ModuleType(name)
    fake.create_model = fake.get_model = lambda name, **given: Net(given.get("num_classes", 3))
    fake.models = fake
    for module in (name, f"{name}.models"):
        monkeypatch.setitem(sys.modules, module, fake)
    return fake


def saved(tmp_path):
    for name in ("tuned", "start"):
        (tmp_path / name).mkdir()
        torch.save(Net().state_dict(), tmp_path / name / "pytorch_model.bin")
    return tmp_path / "tuned", tmp_path / "start"


@pytest.mark.parametrize("where", ["config of CKPT", "config of INIT", "preset of timm", "preset of torchvision"])
def test_where_the_settings_come_from(where, npz, tmp_path, monkeypatch):
    ckpt, init = saved(tmp_path)
    name = where.rpartition(" ")[2] if "preset" in where else "timm"
    fake, model = library(monkeypatch, name), f"{name}:tiny"
    if "config" in where:
        config = {"architecture": "tiny", "pretrained_cfg": TIMM}
        ((ckpt if "CKPT" in where else init) / "config.json").write_text(json.dumps(config))
        model = None if "CKPT" in where else model
    elif name == "timm":
        fake.get_pretrained_cfg = lambda name: types.SimpleNamespace(**TIMM, url="https://nowhere")
    else:
        preset = types.SimpleNamespace(
            crop_size=[8], resize_size=[10], mean=TIMM["mean"], std=TIMM["std"],
            interpolation=types.SimpleNamespace(value="bicubic"),
        )  # fmt: skip
        weights = types.SimpleNamespace(DEFAULT=types.SimpleNamespace(transforms=lambda: preset))
        fake.get_model_weights = lambda name: [weights] and type("W", (), {"DEFAULT": weights.DEFAULT})
    problem = genbound.load(ckpt, init, model, data=npz)
    wanted = np.stack([by_hand(a, 8, 10, 3, TIMM["mean"], TIMM["std"]) for a in ARRAYS])
    assert np.allclose(problem.data.batch(range(3)).inputs, wanted, atol=1e-6)
    assert "input_size [3, 8, 8]" in problem.remarks[0]


@pytest.mark.parametrize("name", ["hf_hub:timm/resnet18.a1_in1k", "hf-hub:timm/resnet18", "local-dir:/tmp/x"])
def test_timm_is_not_asked_to_fetch(name, npz, tmp_path, monkeypatch):
    fake = library(monkeypatch, "timm")
    fake.create_model = lambda *given, **more: pytest.fail("timm was asked")
    ckpt, init = saved(tmp_path)
    with pytest.raises(GenboundError, match="nothing is downloaded: download the model's directory"):
        genbound.load(ckpt, init, f"timm:{name}", data=npz)


@pytest.mark.parametrize("mode", ["I;16", "I", "I;16B"])
def test_grey_values_of_16_bits_keep_their_range(mode, tmp_path):
    """Pillow's own conversion cuts them off at 255: all white."""
    values = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)
    (tmp_path / "a").mkdir()
    if mode == "I;16B":
        image = PIL.frombytes(mode, (8, 6), values.astype(">u2").tobytes())
        image.save(tmp_path / "a" / "i.tif")
    else:
        image = PIL.fromarray(values) if mode == "I;16" else PIL.fromarray(values.astype(np.int32))
        image.save(tmp_path / "a" / ("i.png" if mode == "I;16" else "i.tif"))
    found = load_data(f"imagefolder:{tmp_path}").batch([0]).inputs[0]
    assert found.shape == (3, 6, 8) and np.allclose(found, values / 65535, atol=0.5 / 255 + 1e-6)


def test_grey_values_of_no_known_range_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    PIL.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "a" / "i.tif")
    with pytest.raises(GenboundError, match=r"no 8 or 16 bits \(mode F\)"):
        load_data(f"imagefolder:{tmp_path}").batch([0])


def test_a_run_reads_its_images_as_its_own_spec_says_alone(npz, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"data": npz, "label2id": None}))
    np.savez(tmp_path / "labels.npz", train=np.arange(3), observed=np.arange(3))

    def processor(*images, **_):
        raise AssertionError("the run has not seen it")

    found = pixels(f"run:{tmp_path}", images=processor, image_settings=TIMM)
    assert torch.equal(found, pixels(npz)) and found.max() > 0.9


def test_held_out_images_are_read_as_those_of_the_run_are(npz, tmp_path):
    run, (ckpt, init) = tmp_path / "run", saved(tmp_path)
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"data": npz, "label2id": None}))
    np.savez(run / "labels.npz", train=np.arange(3), observed=np.arange(3))
    processor = {"image_processor_type": "ViTImageProcessor", "image_std": [0.1] * 3, "size": {"height": 8, "width": 8}}
    (init / "preprocessor_config.json").write_text(json.dumps(processor))
    problem = genbound.load(ckpt, init, Net, data=f"run:{run}", test_data=npz)
    for samples in (problem.data, problem.test_data):
        assert torch.equal(samples.batch(range(3)).inputs, pixels(npz))
