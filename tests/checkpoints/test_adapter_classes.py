"""The number of classes of an adapter is that of the head in its file, whatever else the file holds."""

import pytest
import torch

from genbound.checkpoints.architecture import build_pair

peft = pytest.importorskip("peft", reason="peft is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

BERT = dict(vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=20, pad_token_id=1)  # fmt: skip
SMALL = dict(vocab_size=16, dim=8, hidden_dim=16, n_layers=1, n_heads=2, max_position_embeddings=16)
WITH_WORDS = ["classifier", "word_embeddings"]
CASES = {
    "pre_classifier": ("DistilBert", SMALL, lambda: peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_lin"])),
    "ia3": ("Roberta", BERT, lambda: peft.IA3Config("SEQ_CLS", target_modules=["query"], feedforward_modules=[])),
    "loha": ("Roberta", BERT, lambda: peft.LoHaConfig("SEQ_CLS", target_modules=["query"])),
    "vera": ("Roberta", BERT, lambda: peft.VeraConfig("SEQ_CLS", target_modules=["query"])),
    "words": (
        "Roberta",
        BERT,
        lambda: peft.LoraConfig("SEQ_CLS", target_modules=["query"], modules_to_save=WITH_WORDS),
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of the libraries
def test_the_adapter_fits_the_base_model(tmp_path, name):
    kind, config, adapter = CASES[name]
    torch.manual_seed(0)
    base = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**config))
    base.save_pretrained(tmp_path / "base")
    cls = getattr(transformers, f"{kind}ForSequenceClassification")
    model = peft.get_peft_model(cls.from_pretrained(tmp_path / "base", num_labels=3), adapter()).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "adapter")
    pair = build_pair(tmp_path / "adapter", tmp_path / "base")
    tokens = torch.arange(2, 14).reshape(2, 6)
    said = pair.model(tokens).logits
    assert said.shape == (2, 3) and torch.allclose(said, model(tokens).logits, atol=1e-5)
