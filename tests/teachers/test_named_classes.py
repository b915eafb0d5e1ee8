"""Test networks that know classes by their names."""

import pytest
import torch
from torch import nn

from ka_ray.errors import InputError
from ka_ray.teachers.named_classes import score_classes


class Named(nn.Module):
    """Compares an embedding with one vector per name."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def score_classes(self, embeddings, classes):
        return self.answer(embeddings, classes)


def test_logits_are_what_the_network_says_of_float32_embeddings():
    seen = []

    def answer(embeddings, classes):
        seen.append((embeddings.dtype, classes))
        return (embeddings @ torch.ones(3, len(classes))).double()

    embeddings = torch.randn(5, 3).half()
    logits = score_classes(Named(answer), embeddings, ("a cat", "a dog"))
    assert seen == [(torch.float32, ["a cat", "a dog"])]
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, embeddings.float().sum(dim=1, keepdim=True).expand(5, 2))


def test_a_network_without_the_method_knows_no_names():
    assert score_classes(nn.Linear(3, 3), torch.zeros(2, 3), ["a"]) is None


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda embeddings, classes: embeddings, r"returns the shape \[5, 3\] instead of \[5, 2\]"),
        (lambda embeddings, classes: None, "returns NoneType instead of"),
        (lambda embeddings, classes: torch.full((5, 2), torch.nan), "not finite"),
        (lambda embeddings, classes: embeddings @ torch.ones(4, 2), "fails: .*mat1 and mat2"),
    ],
)
def test_other_answers_are_messages(answer, message):
    with pytest.raises(InputError, match=rf"scores\.descriptive: score_classes of the network .*{message}"):
        score_classes(Named(answer), torch.randn(5, 3), ["a", "b"])
