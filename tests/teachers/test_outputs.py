"""Networks that return more than a tensor: their scores are found, or the user is asked for them."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
import torchvision
from torch import nn

from ka_ray.config import TeacherConfig
from ka_ray.errors import InputError
from ka_ray.images.views import View
from ka_ray.teachers.outputs import SelectScores, find_scores
from ka_ray.teachers.preprocess import Preprocess
from ka_ray.teachers.teacher import Teacher

SCORES, AUXILIARY, FEATURES = torch.randn(2, 5), torch.randn(2, 5), torch.randn(2, 7)
Named = namedtuple("Named", ["aux_logits", "logits"])


@dataclass
class Output:
    """As transformers' ImageClassifierOutput."""

    loss: torch.Tensor | None
    logits: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...]


@pytest.mark.parametrize(
    ("output", "key"),
    [
        (SCORES, None),
        (SCORES, 0),
        ((SCORES,), None),
        ([FEATURES, SCORES], None),
        ((FEATURES, (AUXILIARY,), SCORES), None),
        ((AUXILIARY, SCORES), 1),
        (Named(AUXILIARY, SCORES), None),
        ({"features": FEATURES, "scores": SCORES}, None),
        ({"aux": AUXILIARY, "logits": SCORES}, None),
        ({"aux": AUXILIARY, "main": SCORES}, "main"),
        (Output(None, SCORES, (FEATURES,)), None),
    ],
)
def test_the_scores_are_found(output, key):
    assert find_scores(output, 5, key) is SCORES
    assert SelectScores(5, key)(output) is SCORES


@pytest.mark.parametrize(
    ("output", "key", "message"),
    [
        (FEATURES, None, r"`classes` names 5 classes, but the network outputs \(7,\) per image"),
        ((AUXILIARY, SCORES), None, r"returns 0: \[2, 5\], 1: \[2, 5\]; set `output` to the one"),
        ((AUXILIARY, SCORES), 2, r"expected `output: 2` to be 5 scores per image"),
        ({"a": AUXILIARY, "b": SCORES}, None, r"returns a: \[2, 5\], b: \[2, 5\]; set `output`"),
        ({"a": AUXILIARY, "b": FEATURES}, "b", r"expected `output: b` to be 5 scores per image"),
        ((FEATURES,), None, r"returns 0: \[2, 7\]; expected one of them to be 5 scores"),
        ("text", None, "returns str; expected"),
    ],
)
def test_the_user_is_asked_if_it_is_not_clear(output, key, message):
    with pytest.raises(InputError, match=message):
        find_scores(output, 5, key)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 299)])
def test_the_main_head_of_networks_with_auxiliary_heads_is_found(name, size, training):
    network = torchvision.models.get_model(name, weights=None, num_classes=5, init_weights=False)
    images = torch.randn(2, 3, size, size)
    network.train(training)
    torch.manual_seed(0)  # dropout
    output = network(images)
    assert isinstance(output, torch.Tensor) is not training
    torch.manual_seed(0)
    found = find_scores(network(images), 5)
    torch.testing.assert_close(found, output.logits if training else output)


class TwoHeads(nn.Module):
    """Returns features, and the scores of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pooled = images.mean((2, 3))
        return pooled, self.first(pooled), self.second(pooled)


def test_a_teacher_uses_the_named_part_and_reports_under_its_name():
    config = TeacherConfig(name="birds", network="x.y:z", classes=["a", "b", "c", "d"], output=2)
    network = TwoHeads().eval()
    teacher = Teacher("birds", config.classes, network, Preprocess(config.preprocessing), config.output)
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    expected = network(teacher.preprocess(images))[2]
    assert torch.equal(teacher.scores(images), expected)
    features, scores = teacher.features(images, {"head": "first"})
    assert torch.equal(scores, expected)
    assert features.keys() == {"head"}
    teacher.output = None
    with pytest.raises(InputError, match=r"teacher birds: the network returns 0: .*set `output`"):
        teacher.check_forward_pass(View("squash", 8, 8), {})
