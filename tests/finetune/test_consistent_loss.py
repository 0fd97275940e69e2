"""The corrected loss: unbiased under any noise matrix, for any loss, and the loss itself where there is no noise."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from genbound.errors import GenboundError
from genbound.finetune import ConsistentLoss, symmetric_noise


def random_confusion(k, seed):
    draw = np.random.default_rng(seed).dirichlet(np.ones(k), k)
    return 0.6 * np.eye(k) + 0.4 * draw


def squared(logits, labels):
    return (logits - functional.one_hot(labels, logits.shape[-1])).square().sum(-1)


def margin(logits, labels):
    picked = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return (1 - picked).clamp(min=0)


@pytest.mark.parametrize("k", [2, 3, 7])
@pytest.mark.parametrize("loss", [None, squared, margin], ids=["cross_entropy", "squared", "margin"])
def test_its_expectation_over_the_noise_is_the_clean_loss(k, loss):
    confusion = random_confusion(k, seed=k)
    logits = 3 * torch.randn(5, k, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
    corrected = ConsistentLoss(confusion, "none", **({} if loss is None else {"loss": loss}))
    for clean in range(k):
        labels = torch.full((5,), clean)
        expected = functional.cross_entropy(logits, labels, reduction="none") if loss is None else loss(logits, labels)
        over_noise = sum(confusion[clean, z] * corrected(logits, torch.full((5,), z)) for z in range(k))
        torch.testing.assert_close(over_noise, expected, rtol=1e-12, atol=1e-12)


def test_pencil_value():
    # F = [[.8, .2], [.4, .6]], determinant .4, inverse [[1.5, -.5], [-1, 2]]; p = (1/4, 3/4).
    logits = torch.log(torch.tensor([[0.25, 0.75]], dtype=torch.float64))
    loss = ConsistentLoss([[0.8, 0.2], [0.4, 0.6]], "none")
    ln4, ln43 = np.log(4), np.log(4 / 3)
    assert loss(logits, torch.tensor([0])).item() == pytest.approx(1.5 * ln4 - 0.5 * ln43, abs=1e-12)
    assert loss(logits, torch.tensor([1])).item() == pytest.approx(-1.0 * ln4 + 2.0 * ln43, abs=1e-12)
    # Forward: p F = (.25*.8 + .75*.4, ...) = (.5, .5).
    forward = ConsistentLoss([[0.8, 0.2], [0.4, 0.6]], correction="forward")
    assert forward(logits, torch.tensor([1])).item() == pytest.approx(np.log(2), abs=1e-12)


@pytest.mark.parametrize("correction", ["backward", "forward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_without_noise_it_is_cross_entropy_bit_for_bit(correction, dtype):
    stream = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(9, 5, generator=stream)).to(dtype).requires_grad_()
    labels = torch.arange(9) % 5
    for reduction in ("mean", "sum", "none"):
        a = ConsistentLoss(torch.eye(5), reduction, correction=correction)(logits, labels)
        b = functional.cross_entropy(logits, labels, reduction=reduction)
        assert torch.equal(a, b)
        grads = [torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in (a, b)]
        assert torch.equal(*grads)


def test_forward_correction_is_minimal_at_the_clean_posterior():
    # The population risk of the forward loss is minimal where the network's p is the clean posterior.
    confusion, clean = random_confusion(4, seed=1), np.random.default_rng(0).dirichlet(np.ones(4))
    observed = torch.from_numpy(clean @ confusion)
    logits = torch.log(torch.from_numpy(clean)).requires_grad_()
    loss = ConsistentLoss(confusion, "none", correction="forward")
    risk = sum(observed[z] * loss(logits[None], torch.tensor([z])).squeeze() for z in range(4))
    assert torch.autograd.grad(risk, logits)[0].abs().max() < 1e-12


def test_gradient_is_unbiased_too():
    confusion = random_confusion(3, seed=5)
    logits = torch.randn(1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = ConsistentLoss(confusion, "sum")
    noisy = sum(confusion[2, z] * loss(logits, torch.tensor([z])) for z in range(3))
    clean = functional.cross_entropy(logits, torch.tensor([2]))
    torch.testing.assert_close(*(torch.autograd.grad(v, logits)[0] for v in (noisy, clean)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("correction", ["backward", "forward"])
def test_unlabelled_tokens_do_not_count(correction):
    loss = ConsistentLoss(symmetric_noise(0.3, 3), correction=correction)
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([[0, -100, 1, 2], [-100, -100, 2, 0]])
    counted = labels != -100
    torch.testing.assert_close(loss(logits, labels), loss(logits[counted], labels[counted]))
    loss(logits, labels).backward()
    assert (logits.grad[~counted] == 0).all() and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("correction", ["backward", "forward", "identity"])
def test_labels_that_are_no_class(correction):
    loss = ConsistentLoss(torch.eye(3)) if correction == "identity" else None
    loss = loss or ConsistentLoss(symmetric_noise(0.3, 3), correction=correction)
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    for wrong in (-1, -99, 3):
        for call in (loss, loss.per_sample, loss.compute_loss_func):
            with pytest.raises(GenboundError, match=f"label {wrong} is no class: F is for 0 … 2, and -100"):
                call(logits, torch.tensor([0, wrong]))
    for call in (loss, loss.per_sample, loss.compute_loss_func):
        with pytest.raises(GenboundError, match="F is for 3 classes, the network has 2 outputs"):
            call(logits[:, :2], torch.tensor([0, 1]))


@pytest.mark.parametrize("confusion", [torch.eye(3), symmetric_noise(0.3, 3)], ids=["identity", "noise"])
def test_losses_of_ones_own(confusion):
    """What has no label does not count, and a loss that is a mean already is none of each position."""
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, -100, 2])
    loss = ConsistentLoss(confusion, loss=squared)
    torch.testing.assert_close(loss(logits, labels), loss(logits[[0, 2]], labels[[0, 2]]))
    assert loss.per_sample(logits, labels)[1] == 0
    with pytest.raises(GenboundError, match=r"the loss gives shape \(\) for labels of shape \(3,\)"):
        ConsistentLoss(confusion, loss=functional.cross_entropy)(logits, labels)


def test_accumulated_parts_add_up_to_the_mean_over_the_batch():
    loss = ConsistentLoss(symmetric_noise(0.4, 3))
    logits, labels = torch.randn(7, 3, dtype=torch.float64), torch.arange(7) % 3
    parts = sum(loss.compute_loss_func({"logits": logits[s]}, labels[s], 7) for s in (slice(0, 4), slice(4, 7)))
    torch.testing.assert_close(parts, loss(logits, labels))
    torch.testing.assert_close(loss.compute_loss_func(logits, labels), loss(logits, labels))


def test_half_precision_scores_are_corrected_in_float32():
    loss = ConsistentLoss(symmetric_noise(0.4, 4))
    logits, labels = torch.randn(6, 4), torch.arange(6) % 4
    for dtype in (torch.bfloat16, torch.float16):
        low = loss(logits.to(dtype), labels)
        assert low.dtype is torch.float32 and torch.equal(low, loss(logits.to(dtype).float(), labels))


def test_it_adds_nothing_to_a_checkpoint():
    assert not ConsistentLoss(torch.eye(2)).state_dict()


@pytest.mark.parametrize(
    ("confusion", "words"),
    [
        ([[0.5, 0.5], [0.5, 0.5]], "singular"),
        ([[0.9, 0.2], [0.1, 0.9]], "add up to 1"),
        ([[1.1, -0.1], [0.0, 1.0]], "probabilities"),
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], "square"),
        ([["a", "b"], ["c", "d"]], "numbers"),
        ([[float("nan"), 1.0], [0.0, 1.0]], "probabilities"),
    ],
)
def test_matrices_that_are_none(confusion, words):
    with pytest.raises(GenboundError, match=words):
        ConsistentLoss(confusion)


def test_other_mistakes():
    eye = torch.eye(3)
    with pytest.raises(GenboundError, match="reduction"):
        ConsistentLoss(eye, "median")
    with pytest.raises(GenboundError, match="correction"):
        ConsistentLoss(eye, correction="sideways")
    with pytest.raises(GenboundError, match="cross-entropy alone"):
        ConsistentLoss(eye, correction="forward", loss=squared)
    with pytest.raises(GenboundError, match="3 classes, the network has 4"):
        ConsistentLoss(eye)(torch.randn(2, 4), torch.tensor([0, 1]))
    # Noise beyond recognition is singular, and the forward correction still exists there.
    ConsistentLoss([[0.5, 0.5], [0.5, 0.5]], correction="forward")(torch.randn(2, 2), torch.tensor([0, 1]))
