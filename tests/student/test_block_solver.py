"""Test that a student is solved without a gradient step, through residual, depthwise and gated blocks."""

import copy
import threading
from collections.abc import Callable, Sequence

import pytest
import timm.models.convnext
import timm.models.vision_transformer
import torch
import torchvision.models.convnext
from torch import Tensor, nn

from ka_ray.amalgamation import LabelSets
from ka_ray.config import Preprocessing
from ka_ray.errors import InputError
from ka_ray.student import code_choice
from ka_ray.student.block_solver import BlockSolverSettings, LayerError, check_solvable, solve_student
from ka_ray.student.sum_samples import SampleLimits, SumSampler
from ka_ray.teachers import Preprocess, Teacher, build_network

CLASSES = {"low": ("a", "b", "c"), "high": ("d", "e")}
SIZE = 12


def conv_norm(
    channels_in: int, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


class Residual(nn.Module):
    """The block of a ResNet; with a shortcut of its own where it changes the width."""

    def __init__(self, channels_in: int, channels: int, bottleneck: bool) -> None:
        super().__init__()
        inner = channels // 2 if bottleneck else channels
        first = [conv_norm(channels_in, inner), nn.ReLU(inplace=True)] if bottleneck else []
        self.body = nn.Sequential(
            *first,
            conv_norm(inner if bottleneck else channels_in, inner, 3, channels // channels_in),
            nn.ReLU(inplace=True),
            conv_norm(inner, channels, 1 if bottleneck else 3),
        )
        changes = channels_in != channels
        self.shortcut = conv_norm(channels_in, channels, 1, 2) if changes else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        out = self.body(features)
        out += self.shortcut(features)
        return torch.relu_(out)


class Inverted(nn.Module):
    """The block of a MobileNet, with or without a gate (squeeze-and-excitation)."""

    def __init__(self, channels: int, gated: bool) -> None:
        super().__init__()
        hidden = 2 * channels
        self.expand = nn.Sequential(conv_norm(channels, hidden), nn.ReLU6())
        self.depthwise = nn.Sequential(conv_norm(hidden, hidden, 3, groups=hidden), nn.ReLU6())
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, 3, 1), nn.SiLU(), nn.Conv2d(3, hidden, 1), nn.Sigmoid()
        )
        self.gated, self.project = gated, conv_norm(hidden, channels)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.depthwise(self.expand(features))
        return features + self.project(hidden * self.gate(hidden) if self.gated else hidden)


def head(channels: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def build_resnet(classes: int, bottleneck: bool = False) -> nn.Module:
    blocks = [Residual(4, 4, bottleneck), Residual(4, 8, bottleneck), Residual(8, 8, bottleneck)]
    return nn.Sequential(conv_norm(3, 4, 3), nn.ReLU(), *blocks, *head(8, classes))


def build_mobilenet(classes: int, gated: bool = False) -> nn.Module:
    blocks = [Inverted(4, gated), Inverted(4, gated)]
    if not gated:
        for block in blocks:
            del block.gate
    return nn.Sequential(conv_norm(3, 4, 3), *blocks, conv_norm(4, 8), nn.ReLU(), *head(8, classes))


def build_chain(classes: int) -> nn.Module:
    return build_network("plain", {"widths": [4, 6]}, classes)


def with_large_weights(network: nn.Module) -> nn.Module:
    """Draw all weights anew: many begin with 1, 0 or nearly 0, so that a block changes nothing."""
    for name, weight in network.named_parameters():
        is_factor = name.endswith(("norm.weight", "gamma", "layer_scale"))
        if is_factor:
            nn.init.uniform_(weight, 0.5, 1.5)
        else:
            nn.init.normal_(weight, std=0.3)
    return network


def build_convnext(classes: int) -> nn.Module:
    block = torchvision.models.convnext.CNBlockConfig
    blocks = [block(4, 6, 1), block(6, None, 2)]
    return with_large_weights(torchvision.models.convnext.ConvNeXt(blocks, num_classes=classes))


def build_timm_convnext(classes: int) -> nn.Module:
    sizes = {"depths": (1, 1, 1, 1), "dims": (4, 4, 6, 6), "patch_size": 1}
    network = timm.models.convnext.ConvNeXt(num_classes=classes, conv_mlp=True, **sizes)
    return with_large_weights(network)


def build_vit(classes: int) -> nn.Module:
    sizes = {"img_size": SIZE, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}
    return with_large_weights(
        timm.models.vision_transformer.VisionTransformer(num_classes=classes, init_values=0.1, **sizes)
    )


BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "resnet": build_resnet,
    "bottleneck": lambda classes: build_resnet(classes, bottleneck=True),
    "mobilenet": build_mobilenet,
    "gated": lambda classes: build_mobilenet(classes, gated=True),
    "chain": build_chain,
    "convnext": build_convnext,
    "timm's convnext": build_timm_convnext,
    "vit": build_vit,
}


def make_preprocess() -> Preprocess:
    return Preprocess(Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3, size=SIZE, crop=SIZE))


def make_images(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def make_batches(images: Tensor, size: int = 50) -> list[dict[str, Tensor]]:
    return [dict.fromkeys((*CLASSES, "student"), part) for part in images.split(size)]


def make_teachers(networks: Sequence[nn.Module]) -> list[Teacher]:
    return [
        Teacher(name, classes, network.eval(), make_preprocess())
        for (name, classes), network in zip(CLASSES.items(), networks, strict=True)
    ]


def make_twins(build: Callable[[int], nn.Module], randomised) -> list[Teacher]:
    """Return two teachers that have all but their heads in common."""
    first, second = randomised(build(3)), build(2)
    state = second.state_dict()
    same = {key: value for key, value in first.state_dict().items() if value.shape == state[key].shape}
    second.load_state_dict(state | same)
    return make_teachers([first, second])


def solve(
    teachers: Sequence[Teacher], network: nn.Module, batches: list[dict[str, Tensor]], **options
) -> tuple[nn.Module, list[LayerError]]:
    label_sets = LabelSets(CLASSES)
    return solve_student(network, make_preprocess(), teachers, label_sets, batches, **options)


@torch.no_grad()
def relative_error(network: nn.Module, teachers: Sequence[Teacher], images: Tensor) -> float:
    """Return how far the student's scores are from the teachers' side by side, relative to their variance."""
    expected = torch.cat([teacher.scores(images) for teacher in teachers], dim=1)
    scores = network(make_preprocess()(images))
    return float((scores - expected).square().sum() / (expected - expected.mean(dim=0)).square().sum())


@pytest.mark.parametrize("kind", BUILDERS)
def test_teachers_with_one_trunk_are_reproduced_from_random_weights(kind, randomised):
    teachers = make_twins(BUILDERS[kind], randomised)
    torch.manual_seed(1)
    student, errors = solve(teachers, BUILDERS[kind](5), make_batches(make_images(300)))
    assert relative_error(student, teachers, make_images(40, seed=1)) < 1e-4
    assert max(error.relative_error for error in errors) < 1e-4
    solved = [path for error in errors for path in error.layers]
    layers = [n for n, m in student.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sorted(solved) == sorted(layers)


class SumOverThreads:
    """Adds tensors up over threads, as an all-reduce does over processes."""

    def __init__(self, count: int) -> None:
        self.slots: list[Tensor] = [torch.empty(0)] * count
        self.barrier = threading.Barrier(count, timeout=60)
        self.arrived = [threading.Event() for _ in range(count)]

    def of_rank(self, rank: int) -> Callable[[Tensor], Tensor]:
        def merge(own: Tensor) -> Tensor:
            assert own.dtype == torch.float64
            self.arrived[rank].set()
            self.slots[rank] = own
            self.barrier.wait()
            total = torch.stack(self.slots).sum(dim=0)
            self.barrier.wait()
            return total

        return merge


def run_on_ranks(count: int, work: Callable[[int, Callable[[Tensor], Tensor]], object]) -> None:
    """Run a function in threads that add up over each other."""
    sums, failures = SumOverThreads(count), list[BaseException]()

    def run(rank: int) -> None:
        try:
            work(rank, sums.of_rank(rank))
        except BaseException as error:
            failures.append(error)
            sums.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread, arrived in zip(threads, sums.arrived, strict=True):
        thread.start()
        arrived.wait(60)  # torch.fx traces before the first sum, and cannot do that in two threads at once
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def make_strangers(build: Callable[[int], nn.Module], randomised) -> list[Teacher]:
    return make_teachers([randomised(build(3)), randomised(build(2))])


ALL_POSITIONS = BlockSolverSettings(samples=SampleLimits(per_input=10**6))


def test_ranks_with_images_of_their_own_get_the_student_of_one_process(randomised):
    teachers, images = make_strangers(build_resnet, randomised), make_images(200)
    network = build_resnet(5)
    # One process gets the images in the order that makes the same ones held out: every tenth of each rank.
    alone, errors = solve(teachers, network, make_batches(images, 100), settings=ALL_POSITIONS)
    students: dict[int, nn.Module] = {}

    def work(rank: int, merge: Callable[[Tensor], Tensor]) -> None:
        own = copy.deepcopy(teachers)
        batches = make_batches(images[100 * rank :][:100], 50)
        students[rank], found = solve(own, network, batches, merge=merge, settings=ALL_POSITIONS)
        assert [e.relative_error for e in found] == pytest.approx(
            [e.relative_error for e in errors], rel=1e-3
        )

    run_on_ranks(2, work)
    states = [student.state_dict() for student in (students[0], students[1], alone)]
    for key, expected in states[2].items():
        assert states[0][key].equal(states[1][key])
        torch.testing.assert_close(states[0][key], expected, rtol=1e-3, atol=1e-3)


def test_batch_norms_are_identities_with_the_statistics_of_their_input(randomised):
    teachers, images = make_strangers(build_resnet, randomised), make_images(200)
    student, _ = solve(teachers, build_resnet(5), make_batches(images), settings=ALL_POSITIONS)
    inputs: dict[str, Tensor] = {}
    norms = {name: m for name, m in student.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, norm in norms.items():
        norm.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
    with torch.no_grad():
        student(make_preprocess()(images))
        for name, norm in norms.items():
            mean, variance = inputs[name].mean(dim=(0, 2, 3)), inputs[name].var(dim=(0, 2, 3), unbiased=False)
            torch.testing.assert_close(norm.running_var, variance, rtol=0.05, atol=1e-4)
            torch.testing.assert_close(
                norm.running_mean, mean, rtol=0.05, atol=0.05 * float(variance.max().sqrt())
            )
            # The norm only adds a constant.
            shift = norm(inputs[name]) - inputs[name]
            torch.testing.assert_close(shift, shift[:1, :, :1, :1].expand_as(shift), rtol=1e-3, atol=1e-3)


def test_a_student_of_strangers_is_closer_than_the_mean_and_no_input_is_changed(randomised):
    teachers, images = make_strangers(build_mobilenet, randomised), make_images(300)
    network = build_mobilenet(5)
    before = copy.deepcopy(network.state_dict()), copy.deepcopy(teachers[0].network.state_dict())
    reported: list[tuple[int, int]] = []
    student, errors = solve(
        teachers,
        network,
        make_batches(images),
        report=lambda error, number, total: reported.append((number, total)),
    )
    assert relative_error(student, teachers, make_images(50, seed=1)) < 0.7
    assert reported == [(number, len(errors)) for number in range(1, len(errors) + 1)]
    assert all(torch.equal(v, before[0][k]) for k, v in network.state_dict().items())
    assert all(torch.equal(v, before[1][k]) for k, v in teachers[0].network.state_dict().items())


def test_only_as_many_images_are_read_as_the_settings_say(randomised):
    teachers, read = make_twins(build_chain, randomised), list[int]()

    def batches():
        for number, batch in enumerate(make_batches(make_images(600))):
            read.append(number)
            yield batch

    solve(teachers, build_chain(5), batches(), settings=BlockSolverSettings(images=120))
    assert read == [0, 1, 2]


def test_channels_of_wide_layers_are_chosen_by_the_mean_over_the_kernel(randomised, monkeypatch):
    monkeypatch.setattr(code_choice, "MAX_INPUTS", 10)
    teachers = make_twins(build_resnet, randomised)
    student, _ = solve(teachers, build_resnet(5), make_batches(make_images(200)))
    assert relative_error(student, teachers, make_images(40, seed=1)) < 1e-4


def test_memory_for_hardly_any_images_is_refused(randomised):
    settings = BlockSolverSettings(memory_gib=1e-6)
    with pytest.raises(
        InputError, match=r"too little memory is free for the values of 20 images .*1e-06 GiB"
    ):
        solve(
            make_twins(build_chain, randomised),
            build_chain(5),
            make_batches(make_images(40)),
            settings=settings,
        )


def test_no_images_are_refused(randomised):
    with pytest.raises(InputError, match="a worker got no images"):
        solve(make_twins(build_chain, randomised), build_chain(5), [])


def test_images_that_do_not_fit_into_the_memory_join_where_maps_are_smaller(randomised, monkeypatch):
    teachers, counts = make_twins(build_resnet, randomised), list[int]()
    original = SumSampler.sample

    def sample(self, values, total, seed):
        counts.append(values.num_images)
        return original(self, values, total, seed)

    monkeypatch.setattr(SumSampler, "sample", sample)
    settings = BlockSolverSettings(memory_gib=0.004)
    student, _ = solve(teachers, build_resnet(5), make_batches(make_images(600)), settings=settings)
    assert counts == sorted(counts)
    assert counts[0] < 400 < counts[-1]
    assert relative_error(student, teachers, make_images(40, seed=1)) < 1e-4


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (build_mobilenet, "teacher low has another architecture than the student: its module"),
        (lambda k: nn.Sequential(conv_norm(3, 4), nn.PReLU(), *head(4, k)), "solve the weight '1.weight'"),
        (lambda k: nn.Sequential(conv_norm(3, k), *head(4, k)[:2]), "the scores are not the output"),
    ],
)  # fmt: skip
def test_networks_that_cannot_be_solved_are_refused(build, message, randomised):
    teachers = make_strangers(build_resnet, randomised)
    with pytest.raises(InputError, match=message):
        solve(teachers, build(5), make_batches(make_images(50)))


def test_what_can_be_solved_is_known_before_any_image_is_read(randomised):
    teachers = make_strangers(build_resnet, randomised)
    example = make_preprocess()(make_images(2))
    student = build_resnet(5)
    layers = [module for module in student.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert check_solvable(student, teachers, example) == len(layers)
    with pytest.raises(InputError, match="has another architecture than the student"):
        check_solvable(build_mobilenet(5), teachers, example)
