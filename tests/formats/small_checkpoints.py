"""Small networks of a user's, their fine-tuned copies, and what a case of a format consists of."""

import copy
import sys
import types
from dataclasses import dataclass, field

import torch
from safetensors.torch import save_file
from torch import nn

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.mix = nn.Linear(8, 5)
        self.fc = nn.Linear(5, classes)

    def forward(self, x):
        return self.fc(self.mix(self.norm(self.stem(x)).flatten(1)).tanh())

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Net()

    def forward(self, x):
        return self.backbone(x)

class Unused(Net):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(3, 3)

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.mix = nn.Linear(4, 4)
        self.decode = nn.Linear(4, 6, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, x):
        return self.decode(self.mix(self.embed(x)).mean(1).tanh())
"""
nets_module = types.ModuleType("nets_of_formats")
sys.modules["nets_of_formats"] = nets_module  # pickling a whole module looks its class up here
exec(compile(NETS, "nets", "exec"), vars(nets_module))
Net, Wrapped, Unused, Tied = (getattr(nets_module, name) for name in ("Net", "Wrapped", "Unused", "Tied"))
LIT = """
import torch
import pytorch_lightning as pl
from nets import Net

class Lit(pl.LightningModule):
    def __init__(self, classes, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = Net(classes)
        self.criterion = torch.nn.CrossEntropyLoss(weight=torch.ones(classes))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return self.criterion(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
"""


@dataclass
class Case:
    """What genbound is given, and the truth: a model, its initial weights and the samples."""

    ckpt: object
    init: object
    model: nn.Module
    start: dict
    data: object
    options: dict = field(default_factory=dict)
    loss: str = "cross_entropy"
    says: tuple = ()


def nudge(model: nn.Module, seed: int = 1, scale: float = 0.05) -> nn.Module:
    """A fine-tuned copy: every trainable weight moves a little."""
    tuned, stream = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=stream)
    return tuned.eval()


def start_of(model: nn.Module, **zero) -> dict:
    return {name: p.detach().clone().float() for name, p in model.named_parameters()}


def images(n=6):
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(3)), torch.arange(n) % 3


def nets(folder, cls=Net):
    (folder / "nets.py").write_text(NETS)
    torch.manual_seed(0)
    start = cls().eval()
    return start, nudge(start)


def plain(folder, ckpt, init, cls=Net, data=None, model=None, **more):
    """A case of one of the nets above: ``ckpt`` and ``init`` map a module to what is saved (a path)."""
    start, tuned = nets(folder, cls)
    options = {"model": f"{folder}/nets.py:{cls.__name__}"} if model is None else {"model": model}
    return Case(
        ckpt(tuned),
        init(start),
        tuned,
        start_of(start),
        data or images(),
        {**options, **more.pop("options", {})},
        **more,
    )


def torch_save(path, wrap=lambda state: state, **options):
    def write(module):
        torch.save(wrap(module.state_dict()), path, **options)
        return path

    return write


def tensors_save(path, change=lambda t: t, prefix=""):
    def write(module):
        save_file({prefix + k: change(v.clone()).contiguous() for k, v in module.state_dict().items()}, path)
        return path

    return write


def prefixed(prefix):
    return lambda state: {prefix + name: value for name, value in state.items()}
