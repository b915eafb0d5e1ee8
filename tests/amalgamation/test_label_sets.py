"""Label sets: the order of the classes, and how the scores of shared classes are combined."""

import pickle
from math import log

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ka_ray.amalgamation.label_sets import RULES, LabelSets, describe_overlap, softened_kl
from ka_ray.amalgamation.unify import stationary_distribution
from ka_ray.errors import InputError

# Label sets of three teachers: disjoint, or connected by shared classes in a chain or in a loop.
DISJOINT = {"low": ("zero", "one"), "high": ("nine",), "odd": ("three", "five", "seven")}
CHAIN = {"low": ("zero", "one", "two"), "high": ("nine", "seven"), "odd": ("seven", "one")}
LOOP = {"a": ("cat", "dog", "fox", "owl"), "b": ("fox", "dog", "hen", "pig"), "c": ("pig", "cat", "yak")}
OVERLAPPING = [CHAIN, LOOP]
OVERLAP_RULES = ["mean", "max", "conditional", "sum"]

every_rule = pytest.mark.parametrize("rule", OVERLAP_RULES)
every_overlap = pytest.mark.parametrize("sets", OVERLAPPING, ids=["chain", "loop"])
seeds = pytest.mark.parametrize("seed", range(3))


def random_scores(label_sets: LabelSets, seed: int, images: int = 5, spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(images, label_sets.num_scores, generator=generator, dtype=torch.float64)


def scores_by_class(label_sets: LabelSets, amalgamated: Tensor) -> dict[str, list[float]]:
    return {name: amalgamated[:, k].tolist() for k, name in enumerate(label_sets.classes)}


def unused_divergence(scores: Tensor, target: Tensor) -> Tensor:
    raise AssertionError("the conditional rule needs no divergence")


def sum_of_kls(label_sets: LabelSets, scores: Tensor, teacher_scores: Tensor) -> Tensor:
    """Compute the conditional loss of each image, `[B]`, directly from its formula."""
    total = torch.zeros(len(scores), dtype=scores.dtype)
    for teacher, part in zip(label_sets.by_teacher, label_sets.split(teacher_scores), strict=True):
        p = part.softmax(dim=1)
        restricted = scores.exp()[:, label_sets.columns(teacher)]
        restricted = restricted / restricted.sum(dim=1, keepdim=True)
        total = total + (p * (p / restricted).log()).sum(dim=1)
    return total


# The order of the classes


def test_the_union_lists_the_classes_teacher_by_teacher():
    assert LabelSets(DISJOINT).classes == ("zero", "one", "nine", "three", "five", "seven")


def test_a_shared_class_is_listed_where_it_first_appears():
    assert LabelSets(CHAIN).classes == ("zero", "one", "two", "nine", "seven")


@pytest.mark.parametrize(
    ("sets", "teacher", "columns"),
    [
        (DISJOINT, "low", [0, 1]),
        (DISJOINT, "high", [2]),
        (DISJOINT, "odd", [3, 4, 5]),
        (CHAIN, "high", [3, 4]),
        (CHAIN, "odd", [4, 1]),
    ],
)
def test_columns_are_the_indices_of_a_teachers_classes(sets, teacher, columns):
    assert LabelSets(sets).columns(teacher) == columns


def test_the_overlap_names_the_teachers_of_each_shared_class():
    assert LabelSets(CHAIN).overlap == {"one": ("low", "odd"), "seven": ("high", "odd")}
    assert LabelSets(DISJOINT).overlap == {}


def test_scores_are_split_in_the_order_of_the_teachers():
    label_sets = LabelSets(CHAIN)
    assert label_sets.num_scores == 7
    parts = label_sets.split(torch.arange(14.0).view(2, 7))
    assert [part[0].tolist() for part in parts] == [[0, 1, 2], [3, 4], [5, 6]]


def test_a_wrong_number_of_scores_is_refused():
    with pytest.raises(ValueError, match="got 5 scores per image, but the teachers have 7 together"):
        LabelSets(CHAIN).amalgamate(torch.zeros(2, 5))


# Every rule, compared with values computed by hand


def test_concatenated_scores_have_each_teachers_scores_in_its_columns():
    label_sets = LabelSets(DISJOINT)
    teacher_scores = torch.randn(7, 6)
    amalgamated = label_sets.amalgamate(teacher_scores)
    for teacher, part in zip(DISJOINT, label_sets.split(teacher_scores), strict=True):
        assert torch.equal(amalgamated[:, label_sets.columns(teacher)], part)


@pytest.mark.parametrize("rule", ["mean", "max"])
def test_for_disjoint_label_sets_mean_and_max_equal_concatenation(rule):
    teacher_scores = torch.randn(7, 6)
    assert torch.equal(LabelSets(DISJOINT, rule).amalgamate(teacher_scores), teacher_scores)


@pytest.mark.parametrize(
    ("rule", "expected"),
    # The columns: zero, one (low: 1, odd: -3), two, nine, seven (high: -4, odd: 6).
    [("mean", [0.5, -1.0, -2.0, 3.0, 1.0]), ("max", [0.5, 1.0, -2.0, 3.0, 6.0])],
)
def test_mean_and_max_equal_values_computed_by_hand(rule, expected):
    teacher_scores = torch.tensor([[0.5, 1.0, -2.0, 3.0, -4.0, 6.0, -3.0]])
    assert LabelSets(CHAIN, rule).amalgamate(teacher_scores).tolist() == [expected]


@pytest.mark.parametrize(
    ("sets", "rule", "expected"),
    [
        # Minus the mean of each teacher: low 0.5 1 -2 minus -1/6, high 3 -4 minus -1/2, odd 6 -3 minus 3/2.
        (CHAIN, "mean", [2 / 3, (7 / 6 - 4.5) / 2, -11 / 6, 3.5, (-3.5 + 4.5) / 2]),
        (CHAIN, "max", [2 / 3, 7 / 6, -11 / 6, 3.5, 4.5]),
        (
            {"a": ("x", "y", "z"), "b": ("u", "v"), "c": ("s", "t")},
            None,
            [2 / 3, 7 / 6, -11 / 6, 3.5, -3.5, 4.5, -4.5],
        ),
    ],
)
def test_centred_scores_equal_values_computed_by_hand(sets, rule, expected):
    teacher_scores = torch.tensor([[0.5, 1.0, -2.0, 3.0, -4.0, 6.0, -3.0]], dtype=torch.float64)
    assert LabelSets(sets, rule, center=True).amalgamate(teacher_scores).tolist()[0] == pytest.approx(
        expected
    )


def test_conditional_scores_equal_values_computed_by_hand():
    # Teacher a: cat 1/2, dog 1/2. Teacher b: fox 3/4, dog 1/4. So cat : dog : fox = 1 : 1 : 3.
    label_sets = LabelSets({"a": ("cat", "dog"), "b": ("fox", "dog")}, "conditional")
    teacher_scores = torch.tensor([[0.0, 0.0, log(3.0), 0.0]]) + torch.tensor([5.0, 5.0, -7.0, -7.0])
    amalgamated = label_sets.amalgamate(teacher_scores)
    assert amalgamated.exp().tolist()[0] == pytest.approx([0.2, 0.2, 0.6], rel=1e-6)


def test_the_conditional_loss_equals_a_value_computed_by_hand():
    # The student's probabilities of each teacher's two classes are 1/2, 1/2. Those of teacher a are equal;
    # teacher b adds KL((3/4, 1/4) || (1/2, 1/2)).
    label_sets = LabelSets({"a": ("cat", "dog"), "b": ("fox", "dog")}, "conditional")
    teacher_scores = torch.tensor([[0.0, 0.0, log(3.0), 0.0]])
    loss = label_sets.loss(torch.zeros(1, 3), teacher_scores, unused_divergence)
    assert loss.item() == pytest.approx(0.75 * log(1.5) + 0.25 * log(0.5), abs=1e-6)


@pytest.mark.parametrize("rule", ["mean", "max"])
def test_the_loss_of_other_rules_is_the_divergence_from_the_amalgamated_scores(rule):
    label_sets = LabelSets(CHAIN, rule)
    teacher_scores, scores = random_scores(label_sets, 0), torch.zeros(5, 5, dtype=torch.float64)
    loss = label_sets.loss(scores, teacher_scores, lambda got, target: (2 * got - target).sum())
    assert torch.equal(loss, -label_sets.amalgamate(teacher_scores).sum())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_temperature_softens_the_conditional_loss(temperature):
    label_sets = LabelSets(LOOP, "conditional")
    teacher_scores, scores = random_scores(label_sets, 0), torch.randn(5, 7, dtype=torch.float64)
    expected = (
        temperature**2 * sum_of_kls(label_sets, scores / temperature, teacher_scores / temperature).mean()
    )
    loss = label_sets.loss(scores, teacher_scores, unused_divergence, temperature=temperature)
    torch.testing.assert_close(loss, expected)


def test_softened_kl_equals_a_value_computed_by_hand():
    # softmax(target / 2) = (3/4, 1/4) against (1/2, 1/2), times 2^2
    loss = softened_kl(torch.zeros(1, 2), torch.tensor([[2 * log(3.0), 0.0]]), temperature=2)
    assert loss.item() == pytest.approx(4 * (0.75 * log(1.5) + 0.25 * log(0.5)), rel=1e-5)


# Invariances


def permute(label_sets: LabelSets, teacher_scores: Tensor, seed: int, what: str) -> tuple[LabelSets, Tensor]:
    """Permute the teachers, or the classes of every teacher (``what``), and their scores in the same way."""
    generator = torch.Generator().manual_seed(seed + 1)

    def order(count: int) -> list[int]:
        return torch.randperm(count, generator=generator).tolist()

    teachers = list(zip(label_sets.by_teacher.items(), label_sets.split(teacher_scores), strict=True))
    if what == "teachers":
        teachers = [teachers[i] for i in order(len(teachers))]
    else:
        orders = [order(len(classes)) for (_, classes), _ in teachers]
        teachers = [
            ((name, tuple(classes[k] for k in ks)), part[:, ks])
            for ((name, classes), part), ks in zip(teachers, orders, strict=True)
        ]
    return (
        LabelSets(dict(item for item, _ in teachers), label_sets.rule),
        torch.cat([part for _, part in teachers], dim=1),
    )


@seeds
@every_rule
@every_overlap
@pytest.mark.parametrize("what", ["teachers", "classes"])
def test_the_order_of_teachers_and_of_their_classes_does_not_matter(sets, rule, seed, what):
    label_sets = LabelSets(sets, rule)
    teacher_scores = random_scores(label_sets, seed)
    other, permuted_scores = permute(label_sets, teacher_scores, seed, what)
    expected = scores_by_class(label_sets, label_sets.amalgamate(teacher_scores))
    got = scores_by_class(other, other.amalgamate(permuted_scores))
    assert got.keys() == expected.keys()
    for name in got:
        assert got[name] == pytest.approx(expected[name], abs=1e-8)


@seeds
@every_overlap
def test_only_conditional_and_centred_scores_ignore_a_constant_added_to_a_teachers_scores(sets, seed):
    label_sets = LabelSets(sets, "conditional")
    teacher_scores = random_scores(label_sets, seed)
    shifted = teacher_scores.clone()
    shifted[:, : len(sets[next(iter(sets))])] += 3.0
    torch.testing.assert_close(
        label_sets.amalgamate(shifted), label_sets.amalgamate(teacher_scores), rtol=0, atol=1e-8
    )
    scores = torch.randn(len(teacher_scores), len(label_sets.classes), dtype=torch.float64)
    torch.testing.assert_close(
        label_sets.loss(scores, shifted, unused_divergence),
        label_sets.loss(scores, teacher_scores, unused_divergence),
    )
    for rule in ("mean", "max"):
        raw, centered = LabelSets(sets, rule), LabelSets(sets, rule, center=True)
        assert not torch.allclose(raw.amalgamate(shifted), raw.amalgamate(teacher_scores))
        torch.testing.assert_close(centered.amalgamate(shifted), centered.amalgamate(teacher_scores))


@pytest.mark.parametrize("rule", OVERLAP_RULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_amalgamated_scores_keep_the_dtype(rule, dtype):
    label_sets = LabelSets(LOOP, rule)
    exact = random_scores(label_sets, 0)
    amalgamated = label_sets.amalgamate(exact.to(dtype))
    assert amalgamated.dtype == dtype
    torch.testing.assert_close(amalgamated.double(), label_sets.amalgamate(exact), rtol=5e-3, atol=5e-3)


def test_float16_teacher_scores_give_a_float32_loss():
    label_sets = LabelSets(LOOP, "conditional")
    teacher_scores, scores = random_scores(label_sets, 0).half(), torch.randn(5, 7, requires_grad=True)
    loss = label_sets.loss(scores, teacher_scores, unused_divergence)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, label_sets.loss(scores, teacher_scores.float(), unused_divergence))


# The conditional rule minimises its loss


def minimise_by_lbfgs(label_sets: LabelSets, teacher_scores: Tensor) -> Tensor:
    """Find log q, `[B, K]`, with the smallest sum of KLs by a general optimiser."""
    scores = torch.zeros(
        len(teacher_scores), len(label_sets.classes), dtype=torch.float64, requires_grad=True
    )
    optimiser = torch.optim.LBFGS(
        [scores],
        max_iter=2000,
        tolerance_grad=1e-11,
        tolerance_change=1e-15,
        history_size=40,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = sum_of_kls(label_sets, scores, teacher_scores).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return scores.detach().log_softmax(dim=1)


@seeds
@every_overlap
def test_conditional_scores_equal_those_found_by_a_general_optimiser(sets, seed):
    label_sets = LabelSets(sets, "conditional")
    teacher_scores = random_scores(label_sets, seed)
    torch.testing.assert_close(
        label_sets.amalgamate(teacher_scores),
        minimise_by_lbfgs(label_sets, teacher_scores),
        rtol=0,
        atol=1e-5,
    )


@seeds
@every_overlap
@pytest.mark.parametrize("spread", [1.0, 5.0])
def test_teachers_that_restrict_one_distribution_are_amalgamated_to_that_distribution(sets, seed, spread):
    label_sets = LabelSets(sets, "conditional")
    generator = torch.Generator().manual_seed(seed)
    truth = spread * torch.randn(6, len(label_sets.classes), generator=generator, dtype=torch.float64)
    truth = truth.log_softmax(dim=1)
    teacher_scores = torch.cat([truth[:, label_sets.columns(teacher)] for teacher in sets], dim=1)
    torch.testing.assert_close(label_sets.amalgamate(teacher_scores), truth, rtol=0, atol=1e-6)
    assert label_sets.loss(truth, teacher_scores, unused_divergence).item() == pytest.approx(0, abs=1e-12)


@seeds
@every_overlap
@pytest.mark.parametrize("spread", [1.0, 6.0, 12.0])
def test_the_loss_is_smallest_at_the_amalgamated_scores(sets, seed, spread):
    label_sets = LabelSets(sets, "conditional")
    teacher_scores = random_scores(label_sets, seed, spread=spread)
    best = label_sets.amalgamate(teacher_scores).requires_grad_()
    loss = label_sets.loss(best, teacher_scores, unused_divergence)
    (gradient,) = torch.autograd.grad(loss, best)
    assert gradient.abs().max() < 1e-9
    for _ in range(5):
        nearby = best + 0.1 * torch.randn_like(best)
        assert label_sets.loss(nearby, teacher_scores, unused_divergence) > loss


@seeds
@every_overlap
def test_the_gradient_of_the_conditional_loss_equals_finite_differences(sets, seed):
    label_sets = LabelSets(sets, "conditional")
    teacher_scores = random_scores(label_sets, seed, images=2)
    scores = torch.randn(2, len(label_sets.classes), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda student: label_sets.loss(student, teacher_scores, unused_divergence, temperature=2.0),
        (scores,),
    )


@pytest.mark.parametrize("sets", [*OVERLAPPING, {"alone": ("cat", "dog")}], ids=["chain", "loop", "one"])
def test_conditional_scores_are_finite_for_extreme_teacher_scores(sets):
    label_sets = LabelSets(sets, "conditional")
    teacher_scores = random_scores(label_sets, 0, images=64, spread=1000.0).float()
    amalgamated = label_sets.amalgamate(teacher_scores)
    assert amalgamated.isfinite().all()
    torch.testing.assert_close(amalgamated.exp().sum(dim=1), torch.ones(64))


def test_amalgamated_scores_of_one_teacher_are_its_log_softmax():
    label_sets = LabelSets({"alone": ("cat", "dog", "fox")}, "conditional")
    teacher_scores = random_scores(label_sets, 0)
    torch.testing.assert_close(label_sets.amalgamate(teacher_scores), teacher_scores.log_softmax(dim=1))


@every_rule
def test_amalgamation_is_deterministic_and_the_same_under_autocast(rule):
    label_sets = LabelSets(LOOP, rule)
    teacher_scores = random_scores(label_sets, 0).float()
    first = label_sets.amalgamate(teacher_scores)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(label_sets.amalgamate(teacher_scores), first)
    assert label_sets.amalgamate(teacher_scores[:0]).shape == (0, 7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_rule
def test_amalgamation_on_cuda_equals_that_on_the_cpu(rule):
    label_sets = LabelSets(LOOP, rule)
    teacher_scores = random_scores(label_sets, 0)
    got = label_sets.amalgamate(teacher_scores.cuda())
    torch.testing.assert_close(got.cpu(), label_sets.amalgamate(teacher_scores), rtol=0, atol=1e-9)


@seeds
@pytest.mark.parametrize("states", [1, 2, 5])
def test_stationary_distributions_balance_inflow_and_outflow(seed, states):
    generator = torch.Generator().manual_seed(seed)
    rates = torch.rand(4, states, states, generator=generator, dtype=torch.float64) ** 8
    weights = stationary_distribution(rates)
    flows = weights[:, :, None] * rates
    torch.testing.assert_close(flows.sum(dim=1), flows.sum(dim=2))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(4, dtype=torch.float64))


# Defaults, errors and descriptions


def test_the_default_rule_depends_on_whether_label_sets_overlap():
    assert LabelSets(DISJOINT).rule == "concatenate"
    assert LabelSets(CHAIN).rule == "mean"


@pytest.mark.parametrize(
    ("sets", "rule", "message"),
    [
        (CHAIN, "concatenate", r"scores.rule is 'concatenate'.*'one' \(low, odd\), 'seven' \(high, odd\)"),
        (
            DISJOINT,
            "conditional",
            r"scores.rule is 'conditional'.*no class connects \(low\) with \(high\) with \(odd\)",
        ),
        (
            {"a": ("cat", "dog"), "b": ("hen",), "c": ("dog", "fox"), "d": ("hen", "pig")},
            "conditional",
            r"no class connects \(a, c\) with \(b, d\); choose mean or max",
        ),
        (CHAIN, "median", "scores.rule is 'median'; choose one of concatenate, mean, max, conditional"),
        ({"low": ("one", "two", "one")}, None, "teacher low: classes names 'one' more than once"),
    ],
)
def test_label_sets_and_rules_that_do_not_fit_are_refused_with_the_reason(sets, rule, message):
    with pytest.raises(InputError, match=message):
        LabelSets(sets, rule)


def test_teachers_connected_through_a_later_one_are_accepted():
    assert LabelSets(CHAIN, "conditional").rule == "conditional"


def test_disjoint_label_sets_have_no_description():
    assert describe_overlap(LabelSets(DISJOINT)) is None


@pytest.mark.parametrize(
    ("rule", "words"),
    [("mean", "is the mean over"), ("max", "is the maximum over"), ("conditional", "no common scale")],
)
def test_the_description_names_classes_teachers_and_rule(rule, words):
    sentence = describe_overlap(LabelSets(CHAIN, rule))
    assert sentence.startswith(
        f"The label sets overlap: 'one' (low, odd), 'seven' (high, odd). With scores.rule {rule}, "
    )
    assert words in sentence
    assert sentence.endswith(".")


def test_a_long_list_of_shared_classes_is_cut_short():
    names = tuple(f"c{k}" for k in range(11))
    sentence = describe_overlap(LabelSets({"a": names, "b": names}))
    assert "'c7' (a, b) and 3 more." in sentence
    assert "'c8'" not in sentence


@pytest.mark.parametrize("rule", [None, *OVERLAP_RULES])
def test_label_sets_can_be_pickled(rule):
    label_sets = LabelSets(LOOP, rule)
    copy = pickle.loads(pickle.dumps(label_sets))
    assert copy == label_sets
    teacher_scores = random_scores(label_sets, 0)
    assert torch.equal(copy.amalgamate(teacher_scores), label_sets.amalgamate(teacher_scores))


def test_this_file_tests_every_rule():
    assert set(RULES) == {"concatenate", *OVERLAP_RULES}
    scores = torch.ones(2, 6)
    assert LabelSets(DISJOINT).loss(scores, torch.zeros(2, 6), functional.mse_loss) == 1
