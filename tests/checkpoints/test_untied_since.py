"""A language model that fine-tuning has untied starts, in both uses of the weight, at INIT's one."""

import copy

import pytest
import torch

from genbound.checkpoints.architecture import build_pair

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

WORDS, HEAD = "transformer.wte.weight", "lm_head.weight"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of the library
def test_the_head_starts_at_the_tied_weight(tmp_path, tied):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2, n_positions=32, bos_token_id=3,
                                     eos_token_id=3, tie_word_embeddings=tied)  # fmt: skip
    start = transformers.GPT2LMHeadModel(config)
    start.save_pretrained(tmp_path / "init")
    own = copy.deepcopy(config)
    own.tie_word_embeddings = False
    tuned = transformers.GPT2LMHeadModel(own)
    tuned.load_state_dict({**start.state_dict(), HEAD: start.lm_head.weight + 0.01})
    tuned.save_pretrained(tmp_path / "ckpt")
    pair = build_pair(tmp_path / "ckpt", tmp_path / "init")
    assert not pair.head_note
    assert torch.equal(pair.init[HEAD], start.lm_head.weight) and torch.equal(pair.init[WORDS], pair.params[WORDS])
    assert torch.equal(pair.params[HEAD], tuned.lm_head.weight)
