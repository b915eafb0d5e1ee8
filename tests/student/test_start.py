"""Test the start of a student from its teachers' weights: means, heads side by side, cutting and folding."""

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from ka_ray.config import Preprocessing
from ka_ray.errors import InputError
from ka_ray.student import Student, StudentSpec
from ka_ray.student.batch_norms import measure_batch_norms
from ka_ray.student.start import build_start, find_head, weight_distance
from ka_ray.student.transfer import transfer_weights
from ka_ray.teachers import Preprocess, Teacher, build_network

PIXELS = {"resize": "squash", "size": 32, "crop": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
CLASSES = {"low": ("a", "b", "c"), "high": ("d", "b")}
SMALL = {"widths": [4, 6]}


def make_spec(network: str, paths: dict[str, str], arguments=None, **changes) -> StudentSpec:
    widths = {"plain": {"conv1": 4, "conv2": 6}, "vgg11_bn": {"conv1_1": 64, "conv3_2": 256}}.get(network, {})
    spec = StudentSpec(network, arguments or {}, paths, widths, CLASSES, "mean", PIXELS, {})
    return replace(spec, **changes)


def make_teachers(network: str, arguments, randomised) -> list[Teacher]:
    preprocess = Preprocess(Preprocessing.model_validate(PIXELS))
    return [
        Teacher(name, classes, randomised(build_network(network, arguments, len(classes))).eval(), preprocess)
        for name, classes in CLASSES.items()
    ]


def states(teachers: list[Teacher]) -> list[dict[str, torch.Tensor]]:
    return [teacher.network.state_dict() for teacher in teachers]


PLAIN = make_spec("plain", {"conv1": "conv1", "conv2": "conv2"}, SMALL)


def test_the_trunk_is_the_mean_and_the_heads_stand_side_by_side(randomised):
    low, high = teachers = make_teachers("plain", SMALL, randomised)
    start = build_start(PLAIN, states(teachers), teachers)
    assert start.random == ()
    found, (a, b) = start.network.state_dict(), states(teachers)
    for key in ("conv1.weight", "norm2.bias", "norm2.running_var"):
        torch.testing.assert_close(found[key], (a[key] + b[key]) / 2)
    # The classes are a, b, c, d; both teachers know b, as their second class.
    head = torch.stack([a["head.weight"][0], (a["head.weight"][1] + b["head.weight"][1]) / 2,
                        a["head.weight"][2], b["head.weight"][0]])  # fmt: skip
    torch.testing.assert_close(found["head.weight"], head)
    assert start.mixed_norms == {"norm1", "norm2"}
    assert low.network.state_dict()["conv1.weight"].equal(a["conv1.weight"])
    assert high.classes == ("d", "b")


def test_centred_scores_have_centred_heads(randomised):
    teachers = make_teachers("plain", SMALL, randomised)
    spec = replace(
        PLAIN, center=True, label_sets={"low": ("a", "b", "c"), "high": ("d", "e")}, rule="concatenate"
    )
    teachers[1].classes = ("d", "e")
    start = build_start(spec, states(teachers)[:1], teachers)
    features = torch.randn(5, 6)
    with torch.no_grad():
        expected = [teacher.network.head(features) for teacher in teachers]
        found = start.network.head(features)
    centred = torch.cat([scores - scores.mean(dim=1, keepdim=True) for scores in expected], dim=1)
    torch.testing.assert_close(found, centred)


def test_what_does_not_fit_stays_random_and_is_named(randomised):
    teachers = make_teachers("plain", SMALL, randomised)
    other = build_network("plain", {"widths": [4, 7]}, 3).state_dict()
    start = build_start(PLAIN, [other], teachers)
    assert set(start.random) == {
        "conv2.weight", "norm2.weight", "norm2.bias", "norm2.running_mean", "norm2.running_var",
    }  # fmt: skip
    with pytest.raises(InputError, match="no weight before the head fits"):
        build_start(replace(PLAIN, network="resnet18", arguments={}), [other], teachers)


@pytest.mark.parametrize(
    ("network", "arguments", "paths", "center"),
    [
        ("plain", SMALL, {"conv1": "conv1", "conv2": "conv2"}, False),
        pytest.param(
            "vgg11_bn", {}, {"conv1_1": "conv1_1", "conv3_2": "conv3_2"}, False, marks=pytest.mark.slow
        ),
        ("resnet18", {}, {"early": "layer1", "late": "layer3"}, False),
        ("mobilenet_v3_small", {}, {"early": "features.2", "late": "features.8"}, False),
        ("timm/convnext_atto", {}, {"early": "stages.0"}, False),
        (
            "timm/vit_tiny_patch16_224",
            {"img_size": 32, "depth": 3},
            {"early": "blocks.0", "late": "blocks.1"},
            False,
        ),
    ],
)
def test_the_cut_student_computes_what_the_network_computes(network, arguments, paths, center, randomised):
    teachers = make_teachers(network, arguments, randomised)
    spec = make_spec(network, paths, arguments, center=center)
    start = build_start(spec, states(teachers), teachers)
    student = Student(spec).eval()
    transfer_weights(start.network, student)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected, found = start.network(student.preprocess(images)), student(images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_two_heads_on_one_trunk_give_the_ensemble_exactly(randomised):
    low, high = teachers = make_teachers("resnet18", {}, randomised)
    trunk = {key: value for key, value in low.network.state_dict().items() if not key.startswith("fc.")}
    high.network.load_state_dict({**high.network.state_dict(), **trunk})
    label_sets = {"low": ("a", "b", "c"), "high": ("d", "e")}
    high.classes = ("d", "e")
    spec = make_spec("resnet18", {"late": "layer3"}, label_sets=label_sets, rule="concatenate")
    start = build_start(spec, states(teachers), teachers)
    assert start.mixed_norms == frozenset()  # nothing is measured again
    student = Student(spec).eval()
    transfer_weights(start.network, student)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        ensemble = torch.cat([teacher.scores(images) for teacher in teachers], dim=1)
        assert float((student(images) - ensemble).abs().max()) < 1e-5 * float(
            ensemble.abs().max().clamp_min(1)
        )


def test_the_head_is_found_by_another_number_of_classes():
    assert find_head(PLAIN, []) == {"head.weight": 0, "head.bias": 0}
    assert find_head(make_spec("squeezenet1_1", {}), []) == {"classifier.1.weight": 0, "classifier.1.bias": 0}


def test_the_distance_of_weights_is_relative_to_their_norm():
    first, second = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        first.weight.fill_(2.0)
        second.weight.fill_(3.0)
    assert weight_distance([first, second], {}) == pytest.approx(0.5)
    seeds = [build_network("resnet18", {}, 3) for _ in range(2)]
    assert weight_distance(seeds, {}) == pytest.approx(2**0.5, abs=0.02)


def test_batch_norms_are_measured_as_in_training(randomised):
    network = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)))
    kept = network[3].running_mean.clone()
    batches = [torch.randn(6, 3, 5, 5) + i for i in range(3)]
    measure_batch_norms(network, {"1"}, batches)
    with torch.no_grad():
        inputs = [network[0](batch) for batch in batches]
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    variances = torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0)
    torch.testing.assert_close(network[1].running_mean, means)
    torch.testing.assert_close(network[1].running_var, variances)
    assert network[3].running_mean.equal(kept)
    assert network[1].momentum == 0.1


def test_ranks_measure_the_statistics_of_all_batches(randomised):
    networks = [randomised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))) for _ in range(3)]
    for network in networks[1:]:
        network.load_state_dict(networks[0].state_dict())
    batches, sums = [torch.randn(6, 3, 5, 5) + i for i in range(3)], []
    measure_batch_norms(networks[0], {"1"}, batches)
    # The first rank sees two of the batches, the second one the third.
    measure_batch_norms(networks[1], {"1"}, batches[:2], lambda own: sums.append(own) or own)
    measure_batch_norms(networks[2], {"1"}, batches[2:], lambda own: own + sums[0])
    torch.testing.assert_close(networks[2][1].running_var, networks[0][1].running_var)


def test_a_model_of_timm_and_its_fine_tuned_copies_average_to_themselves():
    network = timm.create_model("mobilenetv3_small_050", num_classes=3)
    assert weight_distance([network, network], {}) == 0


FACTORY = "ka_ray.teachers.plain:plain_conv_net"


def make_factory_teachers(label_sets, randomised) -> list[Teacher]:
    teachers, preprocess = [], Preprocess(Preprocessing.model_validate(PIXELS))
    for name, names in label_sets.items():
        network = randomised(build_network(FACTORY, {"num_classes": len(names), **SMALL}, 0))
        teachers.append(Teacher(name, names, network, preprocess))
    return teachers


def test_the_head_of_a_factory_is_what_differs_from_a_teacher_with_other_classes(randomised):
    teachers = make_factory_teachers(CLASSES, randomised)
    spec = make_spec(FACTORY, {"first": "norm1"}, {"num_classes": 4, **SMALL})
    start = build_start(spec, states(teachers), teachers)
    assert start.random == ()
    expected = states(teachers)[0]["head.weight"][0]
    torch.testing.assert_close(start.network.state_dict()["head.weight"][0], expected)


def test_a_factory_whose_head_is_not_known_is_not_averaged_over_mixed_classes(randomised):
    label_sets = {"low": ("a", "b"), "high": ("b", "a")}
    teachers = make_factory_teachers(label_sets, randomised)
    spec = make_spec(FACTORY, {"first": "norm1"}, {"num_classes": 2, **SMALL}, label_sets=label_sets)
    with pytest.raises(InputError, match="list their classes in different orders"):
        build_start(spec, states(teachers), teachers)
