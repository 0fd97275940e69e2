"""Gradients of the baselines in closed form, and the constraint inside other people's training loops."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import genbound
from genbound.finetune import ConsistentLoss, DistanceConstraint, symmetric_noise
from genbound.finetune.baselines.mixup import draw_mix, mix
from genbound.finetune.baselines.perturbation import SharpnessAware, TwoSidedNoise


class Quadratic(nn.Module):
    """½ w'Aw, as a matrix so that it counts as a layer."""

    def __init__(self, a, w):
        super().__init__()
        self.a, self.weight = a, nn.Parameter(w.reshape(1, -1))

    def forward(self):
        return 0.5 * (self.weight @ self.a @ self.weight.T).squeeze()


def quadratic():
    stream = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=stream, dtype=torch.float64)
    return Quadratic(root @ root.T, torch.randn(4, generator=stream, dtype=torch.float64))


def backward_of(model):
    def backward():
        loss = model()
        loss.backward()
        return loss.detach()

    return backward


def test_sharpness_aware_gradient():
    model = quadratic()
    w = model.weight.detach().clone()
    loss = SharpnessAware(0.3).step(model, backward_of(model))
    g = w @ model.a
    torch.testing.assert_close(model.weight.grad, (w + 0.3 * g / g.norm()) @ model.a)
    assert torch.equal(model.weight, w) and loss == model()
    SharpnessAware(0.3).step(model, backward_of(model))  # a second part of the batch adds up
    torch.testing.assert_close(model.weight.grad, 2 * (w + 0.3 * g / g.norm()) @ model.a)


def test_two_sided_noise():
    # On a quadratic the first-order terms cancel exactly: the gradient is that at w, the loss rises by the mean of
    # ½u'Au.
    model = quadratic()
    w, plain = model.weight.detach().clone(), float(model().detach())
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(2000):
            model.weight.grad = None
            losses.append(TwoSidedNoise(0.2).step(model, backward_of(model)))
            torch.testing.assert_close(model.weight.grad, w @ model.a)
    rise = torch.stack(losses) - plain
    expected = 0.5 * 0.2**2 * model.a.trace()
    assert abs(rise.mean() - expected) < 4 * rise.std() / 2000**0.5
    assert torch.equal(model.weight, w)


class Replacing(nn.Module):
    """Keeps a running mean of its own, in a new tensor each time."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        return x - self.mean


KEEPING = {
    "batch": lambda: nn.BatchNorm1d(3),
    "instance": lambda: nn.InstanceNorm1d(3, track_running_stats=True),
    "of its own": Replacing,
}


@pytest.mark.parametrize("keeping", KEEPING)
def test_running_statistics_move_once(keeping):
    once, perturbed = (nn.Sequential(nn.Conv1d(3, 3, 1), KEEPING[keeping]()).train() for _ in range(2))
    perturbed.load_state_dict(once.state_dict())
    x = torch.randn(8, 3, 4)
    once(x)

    def backward():
        loss = perturbed(x).square().sum()
        loss.backward()
        return loss.detach()

    SharpnessAware(0.1).step(perturbed, backward)
    names = [name for name, _ in once.named_buffers()]
    assert all(torch.equal(once.get_buffer(name), perturbed.get_buffer(name)) for name in names)
    assert keeping == "of its own" or perturbed[1].momentum == 0.1


def test_mixup():
    x, y = torch.arange(12.0).reshape(6, 2), torch.arange(6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = draw_mix(6, 0.5)
    mixed, other = mix(nn.Identity(), x, y, drawn)
    share = drawn.share
    torch.testing.assert_close(mixed, share * x + (1 - share) * x[other])
    assert 0 <= share <= 1 and sorted(other.tolist()) == list(range(6))


class Texts(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.fc = nn.Embedding(9, 4), nn.Linear(4, 2)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None):
        h = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        m = attention_mask.unsqueeze(-1).float()
        return self.fc((h * m).sum(1) / m.sum(1))


def test_mixup_of_texts_mixes_embeddings():
    model = Texts()
    ids, mask = torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        drawn = draw_mix(2, 1.0)
    mixed, other = mix(model, {"input_ids": ids, "attention_mask": mask}, torch.tensor([0, 1]), drawn)
    share = drawn.share
    embedded = model.embedding(ids)
    torch.testing.assert_close(mixed["inputs_embeds"], share * embedded + (1 - share) * embedded[other])
    assert torch.equal(mixed["attention_mask"], torch.maximum(mask, mask[other])) and "input_ids" not in mixed
    model(**mixed)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, inputs, labels=None):
        return {"logits": self.fc(self.body(inputs).relu())}


def rows(count=48):
    stream = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 5, generator=stream), torch.randint(0, 3, (count,), generator=stream)
    return [{"inputs": a, "labels": b} for a, b in zip(x, y, strict=True)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "more", [{}, {"bf16": True}, {"gradient_accumulation_steps": 3}], ids=["plain", "bf16", "accumulated"]
)
def test_in_the_trainer_of_transformers(tmp_path, more):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("accelerate", reason="needs accelerate")
    from genbound.finetune import DistanceCallback

    torch.manual_seed(0)
    model = Net()
    init = {name: p.detach().clone() for name, p in model.named_parameters()}
    constraint, seen = DistanceConstraint(init, 0.05), []

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen.append({n: float((p - init[n]).double().norm()) for n, p in model.named_parameters() if p.dim() >= 2})

    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=1, per_device_train_batch_size=8, learning_rate=0.1, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, **more,
    )  # fmt: skip
    loss = ConsistentLoss(symmetric_noise(0.2, 3))
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows(), compute_loss_func=loss.compute_loss_func,
        callbacks=[DistanceCallback(constraint), Watch()],
    )  # fmt: skip
    trainer.train()
    assert len(seen) == (2 if "gradient_accumulation_steps" in more else 6)
    assert all(value <= 0.05 for step in seen for value in step.values())
    assert max(seen[-1].values()) > 0.049


def test_without_noise_and_bound_a_plain_loop_is_plain_fine_tuning_bit_for_bit():
    ends = []
    for robust in (False, True):
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        loss = ConsistentLoss(torch.eye(3)) if robust else nn.CrossEntropyLoss()
        if robust:
            DistanceConstraint(model, float("inf"), norm_layers=float("inf")).attach(optimizer, model)
        for row in torch.utils.data.DataLoader(rows(), batch_size=7):
            optimizer.zero_grad()
            value = loss(model(row["inputs"])["logits"], row["labels"])
            value.backward()
            optimizer.step()
        ends.append([value.detach(), *model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_without_noise_and_bound_the_trainer_of_transformers_is_itself_bit_for_bit(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("accelerate", reason="needs accelerate")
    from genbound.finetune import DistanceCallback

    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    stream = torch.Generator().manual_seed(0)
    data = [
        {
            "input_ids": torch.randint(0, 30, (6,), generator=stream),
            "attention_mask": torch.ones(6, dtype=torch.long), "labels": i % 3,
        }
        for i in range(30)
    ]  # fmt: skip
    ends = []
    for robust in (False, True):
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(config)
        arguments = transformers.TrainingArguments(
            str(tmp_path), num_train_epochs=1, per_device_train_batch_size=4, learning_rate=0.01,
            use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        more = {}
        if robust:
            constraint = DistanceConstraint(model, float("inf"), "mars")
            more = {
                "compute_loss_func": ConsistentLoss(torch.eye(3)).compute_loss_func,
                "callbacks": [DistanceCallback(constraint)],
            }
        transformers.Trainer(model, arguments, train_dataset=data, **more).train()
        ends.append(list(model.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.filterwarnings("ignore")
def test_in_lightning(tmp_path):
    try:
        import lightning.pytorch as lightning
    except ImportError:
        lightning = pytest.importorskip("pytorch_lightning", reason="needs Lightning")
    from genbound.finetune import LightningDistance

    seen = []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Net()

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.model(batch["inputs"])["logits"], batch["labels"])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.1)

        def on_train_batch_end(self, *_):
            seen.append(max(constraint.distances(self.model).values()))

    module = Module()
    constraint = DistanceConstraint(dict(module.model.named_parameters()), 0.05)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[LightningDistance(constraint, "model")],
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(rows(), batch_size=8))
    assert len(seen) == 6 and all(value <= 0.05 for value in seen) and seen[-1] > 0.049


DISTRIBUTED = """
import sys, torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from genbound.finetune import ConsistentLoss, DistanceConstraint, symmetric_noise

rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
constraint = DistanceConstraint(net, 0.05)
init = {name: p.detach().clone() for name, p in net.named_parameters()}
model = DistributedDataParallel(net)
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
constraint.attach(optimizer, model)
loss = ConsistentLoss(symmetric_noise(0.2, 3))
torch.manual_seed(rank)
for _ in range(5):
    x, y = torch.randn(8, 5), torch.randint(0, 3, (8,))
    optimizer.zero_grad()
    loss(model(x), y).backward()
    optimizer.step()
    for name, p in net.named_parameters():
        if p.dim() >= 2:
            assert (p - init[name]).double().norm() <= 0.05
        both = [torch.zeros_like(p) for _ in range(2)]
        dist.all_gather(both, p.detach())
        assert torch.equal(*both)
assert max(constraint.distances(model).values()) > 0.049
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_distributed_data_parallel(tmp_path):
    (tmp_path / "job.py").write_text(DISTRIBUTED)
    environment = {**os.environ, "PYTHONPATH": str(Path(genbound.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    jobs = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "job.py"), str(rank), str(tmp_path / "rendezvous")],
            env=environment,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for job in jobs:
        _, error = job.communicate(timeout=300)
        assert job.returncode == 0, error.decode()[-2000:]
