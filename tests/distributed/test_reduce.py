"""Sums that Ray reduces equal those of a plain loop, and their size does not grow with the images."""

from collections.abc import Callable
from functools import partial

import pytest
import ray
import torch

from ka_ray.distributed.extract import Extraction
from ka_ray.distributed.placement import standard_placement
from ka_ray.distributed.reduce import reduce_images
from ka_ray.distributed.resources import pools_of
from ka_ray.distributed.teachers import run_teachers
from ka_ray.features.stack import SCORES
from ka_ray.images import Ids, read_chunk
from ka_ray.images.split import split_images
from ka_ray.numerics.hashed_random import draw_uniform
from ka_ray.numerics.named_moments import NamedMoments
from ka_ray.numerics.ridge import NUM_SOLVER_DRAWS
from ka_ray.student.from_moments import LayerMomentsMeter
from ka_ray.student.plan import Plan, make_plan
from ka_ray.teachers import load_teacher
from ka_ray.teachers.reading import ReadSpec

pytestmark = pytest.mark.ray

POSITIONS, SEED = 5, 7


def make_meter_factory(plan: Plan) -> Callable[..., LayerMomentsMeter]:
    stacked = {tap: shape[0] for tap, shape in plan.shapes.items()}
    return partial(LayerMomentsMeter, plan.spec, stacked, POSITIONS)


def reduce_by_ray(config, plan: Plan, ids: Ids) -> tuple[NamedMoments, dict]:
    images, _ = split_images(config)
    work = Extraction(images.with_ids(ids), config.output_dir, row_bytes=0)
    read_spec = ReadSpec(plan.paths, plan.spaces, config.scores)
    seen = []
    found = reduce_images(
        work,
        config.teachers,
        pools_of(config, standard_placement(config.placement)),
        read_spec,
        make_meter_factory(plan),
        SEED,
        seen.append,
    )
    assert sum(seen) == found[1]["images"] == len(ids)
    return found


def sum_by_plain_loop(config, plan: Plan, ids: Ids) -> NamedMoments:
    images, _ = split_images(config)
    teachers, meter = (
        [load_teacher(teacher) for teacher in config.teachers],
        make_meter_factory(plan)(),
    )
    for chunk in images.source.chunks:
        for block in read_chunk(images.config, images.source.read, chunk, ids, None, lambda *_: None):
            pixels = torch.tensor(block["image"])
            read = [teacher.features(pixels, plan.paths[teacher.name]) for teacher in teachers]
            batch = {
                tap: torch.cat([features[tap] for features, _ in read], dim=1).half().float()
                for tap in plan.shapes
            }
            batch |= {"image": pixels, SCORES: torch.cat([s for _, s in read], dim=1).half().float()}
            meter.add(
                batch | {"draws": torch.from_numpy(draw_uniform(block["image_id"], SEED, NUM_SOLVER_DRAWS))}
            )
    return meter.total


def test_sums_equal_those_of_a_plain_loop_and_more_images_need_no_more_bytes(cluster, load_config, tmp_path):
    config = load_config(
        "images.limit=240",
        "extract={batch_size: 20, object_store_gib: 0.01}",
        "placement.teachers.cpu=0.25",
        f"output={tmp_path}",
    )
    plan = make_plan(config, [load_teacher(teacher) for teacher in config.teachers])
    ids, sizes = split_images(config)[0].ids, []
    for selected_ids, reducers in ((ids[: len(ids) // 4], 1), (ids, 2)):
        extract = config.extract.model_copy(update={"reducers": reducers})
        sums, summary = reduce_by_ray(config.model_copy(update={"extract": extract}), plan, selected_ids)
        assert summary["reducers"] == reducers
        sizes.append(summary["bytes"])
        expected = sum_by_plain_loop(config, plan, selected_ids)
        assert sums.keys() == expected.keys()
        for name, part in expected.items():
            assert sums[name].count == part.count
            torch.testing.assert_close(sums[name].mean, part.mean, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(sums[name].scatter, part.scatter, atol=1e-3, rtol=1e-5)
    assert sizes[0] == sizes[1] > 0
    # The limit of the object store reaches Ray Data.
    rows = run_teachers(
        ray.data.range(1),
        [],
        pools_of(config, standard_placement(config.placement)),
        ReadSpec({}, {}, config.scores),
        None,
    )
    assert rows.context.execution_options.resource_limits.object_store_memory == pytest.approx(0.01 * 1024**3)
