"""Networks of timm and torchvision by name, with random weights: what is measured of them, against torch alone."""

import importlib
import json

import pytest
import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import genbound
from genbound.finetune.start import build_start

pytestmark = [
    pytest.mark.slow,
    # What timm and torchvision warn of among themselves.
    pytest.mark.filterwarnings("ignore:::timm", "ignore:::torchvision", "ignore:.*meshgrid.*:UserWarning"),
]
SIGMA = 1e-4  # of the noise
# Library, name, arguments beside the name, side of an image, head, a layer inside.
NETWORKS = [
    ("timm", "resnet10t", {}, 64, "fc", "layer2.0.conv1.weight"),
    ("timm", "vit_tiny_patch16_224", {"img_size": 64}, 64, "head", "blocks.3.attn.qkv.weight"),
    ("timm", "convnext_atto", {}, 64, "head.fc", "stages.1.blocks.0.mlp.fc1.weight"),
    ("timm", "swin_tiny_patch4_window7_224", {"img_size": 64}, 64, "head.fc", "layers.1.blocks.0.attn.qkv.weight"),
    ("timm", "mixer_s32_224", {"img_size": 64}, 64, "head", "blocks.2.mlp_tokens.fc1.weight"),
    ("timm", "efficientnet_lite0", {}, 64, "classifier", "blocks.1.0.conv_dw.weight"),
    ("torchvision", "resnet18", {}, 64, "fc", "layer2.0.conv1.weight"),
    # Of one size by name, and large: its last layers, so that second derivatives pass through few.
    ("torchvision", "vit_b_32", {}, 224, "heads.head", "encoder.layers.encoder_layer_11.mlp.0.weight"),
    ("torchvision", "convnext_tiny", {}, 64, "classifier.2", "features.3.0.block.3.weight"),
    ("torchvision", "swin_t", {}, 64, "head", "features.1.0.mlp.0.weight"),
    ("torchvision", "efficientnet_b0", {}, 64, "classifier.1", "features.2.0.block.1.0.weight"),
]


def made(library, name, seed, **arguments):
    try:
        module = importlib.import_module(library if library == "timm" else "torchvision.models")
    except Exception as error:  # a build for another torch fails with more than an ImportError
        pytest.skip(f"{library} cannot be imported here: {error}")
    torch.manual_seed(seed)
    make = module.create_model if library == "timm" else module.get_model
    return make(name, **arguments).eval()


@pytest.fixture
def pair(request, tmp_path):
    """CKPT with three classes and INIT with the library's own number of them, and the fine-tuned network."""
    library, name, arguments, *_ = request.param
    start, tuned = made(library, name, 0, **arguments), made(library, name, 0, num_classes=3, **arguments)
    known = {n: v for n, v in start.state_dict().items() if v.shape == tuned.state_dict()[n].shape}
    tuned.load_state_dict(known, strict=False)
    with torch.no_grad():
        for p in tuned.parameters():
            p += 0.01 * torch.randn_like(p)
    torch.save(start.state_dict(), tmp_path / "start.pth")
    (tmp_path / "tuned").mkdir()
    torch.save(tuned.state_dict(), tmp_path / "tuned" / "pytorch_model.bin")
    if arguments:  # timm's own directories say how the network is built
        content = {"architecture": name, "num_classes": 3, "model_args": arguments}
        (tmp_path / "tuned" / "config.json").write_text(json.dumps(content))
    return (*request.param, tmp_path, start, tuned)


@pytest.mark.parametrize("pair", NETWORKS, indirect=True, ids=lambda row: f"{row[0]}-{row[1]}")
def test_networks_by_name(pair):
    library, name, arguments, side, head, inside, folder, start, tuned = pair
    x, y = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2, 1])
    model = None if arguments else f"{library}:{name}"
    wanted = f"{head}.weight,{inside}".split(",")
    problem = genbound.load(
        folder / "tuned", folder / "start.pth", model, data=(x, y), layers=wanted, dtype="float64", batch_size=2
    )
    assert sorted(layer.name for layer in problem.layers) == sorted(wanted)
    measures = ["losses", "displacement_norm", "hessian_trace", "max_quadratic_form"]
    if name == "resnet10t":  # draws of the noise cost as much as all else
        measures.append("noise_stability")
    results = genbound.evaluate(problem, measures, options={"noise_stability": {"sigmas": (SIGMA,)}})
    assert not results.notes

    tuned, x = tuned.double(), x.double()
    weights = {n: p.detach().requires_grad_(n in wanted) for n, p in tuned.named_parameters()}
    features = []
    hook = tuned.get_submodule(head).register_forward_hook(lambda _, inputs, __: features.append(inputs[0].detach()))
    with sdpa_kernel(SDPBackend.MATH):  # the one that can be differentiated twice
        scores = functional_call(tuned, weights, (x,))
    hook.remove()
    loss = torch.nn.functional.cross_entropy(scores, y)
    assert results.quantities["losses"]["train_loss"] == pytest.approx(loss.item(), rel=1e-9)

    v = (weights[inside] - start.get_parameter(inside)).detach()
    norms = results.quantities["displacement_norm"]["layers"]
    assert norms[inside]["value"] == pytest.approx(v.norm().item(), rel=1e-9)
    assert norms[f"{head}.weight"]["value"] == pytest.approx(weights[f"{head}.weight"].norm().item(), rel=1e-9)

    # Softmax regression on the features: the trace of the head's block has a closed form.
    p = scores.detach().softmax(1)
    trace = ((p * (1 - p)).sum(1) * features[0].square().sum(1)).mean().item()
    traces, forms = (results.quantities[name] for name in ("hessian_trace", "max_quadratic_form"))
    assert traces["layers"][f"{head}.weight"]["value"] == pytest.approx(trace, rel=1e-7)
    moved = features[0] @ weights[f"{head}.weight"].detach().T  # the head was measured from zero
    spread = (p * moved.square()).sum(1) - (p * moved).sum(1).square()
    assert forms["layers"][f"{head}.weight"]["value"] == pytest.approx(spread.max().item(), rel=1e-7)

    if "noise_stability" in measures:
        noise, wanted = results.quantities["noise_stability"]["sigmas"][0], 0.5 * SIGMA**2 * traces["total"]["value"]
        error = noise["sem"] + 0.5 * SIGMA**2 * traces["total"]["sem"]
        assert abs(noise["value"] - wanted) <= 4 * error + 1e-3 * abs(wanted)  # so small a sigma sees the Hessian alone

    (gradient,) = torch.autograd.grad(loss, weights[inside], create_graph=True)
    (product,) = torch.autograd.grad(gradient, weights[inside], v)
    found = genbound.hessian_operator(problem, inside).matvec(v.flatten().numpy())
    assert torch.allclose(torch.from_numpy(found), product.flatten(), rtol=1e-6, atol=1e-9 * float(product.abs().max()))


@pytest.mark.parametrize("pair", [NETWORKS[0], NETWORKS[6]], indirect=True, ids=["timm", "torchvision"])
def test_fine_tuning_starts_from_a_network_by_name(pair):
    library, name, *_, head, inside, folder, start, _ = pair
    found = build_start(folder / "start.pth", f"{library}:{name}", 5, None, True, 0)
    assert set(found.new) == {f"{head}.weight", f"{head}.bias"} and found.spec == f"{library}:{name}"
    assert torch.equal(found.model.get_parameter(inside), start.get_parameter(inside))
    assert len(found.model.get_parameter(f"{head}.weight")) == 5
