"""Passes over images that leave sums alone, and what follows from them before anything is learned."""

import dataclasses
from functools import partial
from typing import Any

from ka_ray.amalgamation import METHODS
from ka_ray.config import Config, EnergyWidths
from ka_ray.distributed.extract import Extraction
from ka_ray.distributed.reduce import MakeMeter, reduce_images
from ka_ray.distributed.resources import pools_of
from ka_ray.distributed.teachers import ReadSpec
from ka_ray.features.store import DONE, finish_folder, start_folder
from ka_ray.images.split import ImageSet, split_for_features
from ka_ray.numerics.moment_sums import Sums, load_sums, save_sums
from ka_ray.reports.spectrum import Spectrum, TapSpectrum
from ka_ray.runs.context import Run
from ka_ray.stages.codes_learner import TapsMeter, check_variances
from ka_ray.storage.files import read_json
from ka_ray.student.plan import Plan, make_plan
from ka_ray.teachers import load_teacher

MOMENTS = "moments"
"""The folder with the moments of the stacked features."""

SUMS = "sums.safetensors"


def sum_up(
    run: Run[Config], plan: Plan, images: ImageSet, name: str, make_meter: MakeMeter
) -> tuple[Sums, dict[str, Any]]:
    """Stream images through the teachers into sums; skipped where these stand.

    Args:
        run: Teachers with checkpoints.
        plan: Where features are read.
        images: Of these as many as ``extract.images`` says.
        name: Of the folder for the sums, in the run's.
        make_meter: Makes what adds up.

    Returns:
        The sums, and what :func:`ka_ray.distributed.reduce.reduce_images` says of the pass.
    """
    folder, config = run.folder / name, run.config
    if not (folder / DONE).exists():
        start_folder(folder)
        kept, _ = split_for_features(images, config.extract.images, config.seed)
        work = Extraction(kept.config, kept.source, kept.ids, folder, row_bytes=0)
        reading = ReadSpec(plan.paths, plan.spaces, config.scores)
        with run.display.images("sum", len(kept.ids)) as on_images:
            sums, summary = reduce_images(
                work, config.teachers, pools_of(config), reading, make_meter, config.seed, on_images
            )
        save_sums(sums, folder / SUMS)
        finish_folder(folder, summary)
    return load_sums(folder / SUMS), read_json(folder / DONE)


def measure_taps(run: Run[Config], plan: Plan, images: ImageSet) -> Spectrum:
    """Measure the least error that a code of any width can have, at every tap.

    Raises:
        InputError: The features of a tap never vary.
    """
    config, stacked = run.config, {tap: shape[0] for tap, shape in plan.shapes.items()}
    positions = config.codes.positions_per_image
    make_meter = partial(TapsMeter, stacked, positions)
    sums, summary = sum_up(run, plan, images, MOMENTS, make_meter)
    check_variances(sums)
    spans = METHODS[config.codes.method].spans
    taps = {
        tap: TapSpectrum(
            stacked=channels,
            width=plan.spec.widths[tap],
            most=spans(plan.channels[tap])[0],
            relative_errors=sums[tap].spectrum().tolist(),
        )
        for tap, channels in stacked.items()
    }
    return Spectrum(
        name=config.name,
        images=summary["images"],
        positions_per_image=positions,
        seconds=summary["seconds"],
        taps=taps,
    )


def settle_widths(run: Run[Config], plan: Plan, images: ImageSet) -> tuple[Run[Config], Plan]:
    """Where ``codes.widths`` is a share of the variance, measure what widths it takes, and plan with them."""
    rule = run.config.codes.widths
    if not isinstance(rule, EnergyWidths):
        return run, plan
    widths = measure_taps(run, plan, images).widths(rule.energy)
    named = ", ".join(f"{tap} {width} of {plan.shapes[tap][0]}" for tap, width in widths.items())
    run.tell(f"codes.widths: {rule.energy:g} of the variance takes {named}")
    codes = run.config.codes.model_copy(update={"widths": widths})
    settled = dataclasses.replace(run, config=run.config.model_copy(update={"codes": codes}))
    return settled, make_plan(settled.config, [load_teacher(teacher) for teacher in run.config.teachers])
