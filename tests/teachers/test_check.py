"""A teacher that does not work is named before a run starts; a good one is not."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ka_ray.config import Preprocessing
from ka_ray.errors import InputError
from ka_ray.teachers import Preprocess, Teacher
from ka_ray.teachers.activations import recognise_activation, to_scores
from ka_ray.teachers.check import check_teacher, describe_answers
from ka_ray.teachers.plain import plain_conv_net

CLASSES = ("a", "b", "c")
PLAIN = Preprocessing(mean=[0, 0, 0], std=[1, 1, 1])
NO_LABELS = [""] * 16


class Brightness(nn.Module):
    """Tells dark, medium and bright images apart; ``change`` acts on the scores."""

    def __init__(self, change=lambda scores: scores) -> None:
        super().__init__()
        self.change = change

    def forward(self, images: Tensor) -> Tensor:
        light = images.mean((1, 2, 3))[:, None]
        scores = -10 * (light - torch.tensor([[0.1, 0.5, 0.9]])).abs() - 1
        return self.change(scores)


def make_teacher(network: nn.Module, **arguments: str) -> Teacher:
    return Teacher("pets", CLASSES, network.eval(), Preprocess(PLAIN).eval(), **arguments)


def make_images() -> tuple[Tensor, list[str]]:
    levels = torch.arange(16) % 3
    noise = torch.randint(-5, 6, (16, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    images = (torch.tensor([25, 127, 230])[levels].view(-1, 1, 1, 1) + noise).to(torch.uint8)
    return images, [CLASSES[i] for i in levels]


def test_a_good_teacher_is_not_mentioned(randomised):
    images, labels = make_images()
    assert check_teacher(make_teacher(Brightness()), images, labels) == []
    assert check_teacher(make_teacher(Brightness()), images[:1], labels[:1]) == []
    assert check_teacher(make_teacher(Brightness()), images[:1].expand(16, -1, -1, -1), labels) != []
    network = randomised(plain_conv_net(3, widths=(4, 6)))
    assert all("scores" not in note for note in check_teacher(make_teacher(network), images, NO_LABELS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scores: scores * float("nan"), "its scores are not finite"),
        (
            lambda scores: torch.zeros_like(scores) + torch.tensor([0.0, 1, 2]),
            "the same scores for all of 16",
        ),
        (lambda scores: scores.softmax(dim=1), "the network ended in softmax.*final_activation: softmax"),
        (lambda scores: scores.log_softmax(dim=1), "ended in log_softmax.*final_activation: log_softmax"),
    ],
)
def test_a_teacher_that_cannot_be_used_as_it_is_is_refused(change, message):
    with pytest.raises(InputError, match=f"teacher pets: .*{message}"):
        check_teacher(make_teacher(Brightness(change)), *make_images())


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            Brightness(lambda scores: scores + torch.tensor([50.0, 0, 0])),
            "predicts 'a' for 100 % of 16 images",
        ),
        (Brightness(lambda scores: scores.sigmoid()), "set final_activation: sigmoid, or none"),
        (Brightness(lambda scores: scores.roll(1, dims=1)), "right for 0 of 16 images of its own classes"),
        (
            Brightness(lambda scores: functional.dropout(scores, 0.5)),
            "other scores for the same images in every",
        ),
        (Brightness(lambda scores: scores - scores.mean(dim=0)), "depend on the other images of the batch"),
    ],
)
def test_a_teacher_that_looks_broken_is_named(network, message):
    torch.manual_seed(0)
    notes = check_teacher(make_teacher(network), *make_images())
    assert any(message in note and note.startswith("teacher pets: ") for note in notes), notes


@pytest.mark.parametrize(("mistakes", "is_named"), [(3, False), (7, False), (10, True)])
def test_only_a_teacher_near_chance_is_named_for_its_accuracy(mistakes, is_named):
    images, labels = make_images()
    wrong = {"a": "b", "b": "c", "c": "a"}
    # Guessing among three classes is right for 5.3 of 16 images, with a standard deviation of 1.9.
    labels = [wrong[label] if i < mistakes else label for i, label in enumerate(labels)]
    notes = check_teacher(make_teacher(Brightness()), images, labels)
    assert any("hardly more than by chance" in note for note in notes) is is_named


class Features(Brightness):
    """A teacher with a tap: a linear map of the brightness to 4 channels."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.tap = nn.Linear(1, 4, bias=False)
        self.tap.weight = nn.Parameter(torch.tensor(weights)[:, None])

    def forward(self, images: Tensor) -> Tensor:
        self.tap(images.mean((1, 2, 3))[:, None])
        return super().forward(images)


def check_tap(weights: list[float]) -> list[str]:
    return check_teacher(make_teacher(Features(weights)), *make_images(), {"late": "tap"})


def test_dead_features_are_named_or_refused():
    assert check_tap([1.0, -2.0, 3.0, 0.5]) == []
    assert check_tap([1.0, 0.0, 0.0, 0.0]) == [
        "teacher pets: 3 of 4 channels at tap late are the same for all of 16 images"
    ]
    with pytest.raises(InputError, match=r"taps.late: features of teacher pets are the same for all of 16"):
        check_tap([0.0, 0.0, 0.0, 0.0])
    with pytest.raises(InputError, match=r"taps.late: features of teacher pets are not finite"):
        check_tap([1.0, float("inf"), 0.0, 0.0])


@pytest.mark.parametrize(("mean", "is_named"), [([0.5, 0.5, 0.5], False), ([0.485, 0.456, 0.406], True)])
def test_another_normalisation_than_timms_is_named(mean, is_named):
    import timm

    network = timm.create_model("tf_efficientnet_lite0", num_classes=3).eval()  # its weights want .5 and .5
    preprocess = Preprocess(Preprocessing(mean=mean, std=[0.5, 0.5, 0.5])).eval()
    teacher = Teacher("pets", CLASSES, network, preprocess)
    notes = [note for note in check_teacher(teacher, *make_images()) if "data config" in note]
    assert len(notes) == is_named
    assert all("preprocessing.mean is [0.485, 0.456, 0.406]" in note for note in notes)


def test_the_answers_of_a_teacher_are_described():
    images, labels = make_images()
    known = describe_answers(make_teacher(Brightness()), images, [*labels[:8], *[""] * 8])
    # Brightness has scores -1 and about -5 or -9: probabilities above .9.
    assert known == (
        "teacher pets, tried on 16 images: surer than 90% of 16, most often 'a' (6), right for 8 of 8 of its "
        "own classes"
    )
    assert describe_answers(make_teacher(Brightness()), images, NO_LABELS).endswith("most often 'a' (6)")


def test_batch_norms_without_statistics_are_noticed():
    network = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), Brightness())
    notes = check_teacher(make_teacher(network), make_images()[0], NO_LABELS)
    assert any("a batch norm has no statistics" in note for note in notes)


@pytest.mark.parametrize("activation", ["softmax", "log_softmax", "sigmoid"])
def test_the_activation_is_undone_once_the_config_names_it(activation):
    change = {
        "softmax": lambda scores: scores.softmax(dim=1),
        "log_softmax": lambda scores: scores.log_softmax(dim=1),
        "sigmoid": lambda scores: scores.sigmoid(),
    }[activation]
    images, labels = make_images()
    teacher = make_teacher(Brightness(change), final_activation=activation)
    assert check_teacher(teacher, images, labels) == []
    own, wanted = teacher.scores(images), make_teacher(Brightness()).scores(images)
    if activation != "sigmoid":  # a softmax removes a constant per image
        own, wanted = own.log_softmax(dim=1), wanted.log_softmax(dim=1)
    torch.testing.assert_close(own, wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(teacher.features(images, {})[1], teacher.scores(images))


def test_probabilities_of_0_and_1_become_finite_scores():
    outputs = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    for activation in ("softmax", "sigmoid"):
        assert to_scores(outputs, activation).isfinite().all()
        assert to_scores(outputs, activation).argmax(dim=1).tolist() == [1, 0]


@pytest.mark.parametrize("scale", [0.1, 1, 10])
def test_scores_are_not_taken_for_probabilities(scale):
    scores = torch.randn(16, 5, generator=torch.Generator().manual_seed(0)) * scale
    assert recognise_activation(scores) is None
    assert recognise_activation(scores.softmax(dim=1)) == "softmax"
    assert recognise_activation(scores.softmax(dim=1).half().float()) == "softmax"
    assert recognise_activation(scores.log_softmax(dim=1)) == "log_softmax"
    assert recognise_activation(scores.sigmoid()) == "sigmoid"
    assert recognise_activation(scores - scores.max() - 1) is None
