"""A BERT that trains in a second, for the tests of the callbacks."""

import pytest
import torch


def tiny_bert(**settings):
    """A BERT of width 8 for sequences of up to 16 tokens, with the weights of seed 0."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16}
    return transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, **settings))
