"""Single passes over the images that keep only moments, and what is decided from these moments."""

import dataclasses
from functools import partial
from typing import Any

from ka_ray.amalgamation import METHODS
from ka_ray.config import EnergyWidths
from ka_ray.distributed.extract import Extraction
from ka_ray.distributed.reduce import MakeMeter, reduce_images
from ka_ray.distributed.resources import pools_of
from ka_ray.features.store import DONE, create_shard_folder, mark_folder_finished
from ka_ray.images.split import split_for_features
from ka_ray.numerics.named_moments import NamedMoments, load_moments, save_moments
from ka_ray.reports.spectrum import Spectrum, TapSpectrum
from ka_ray.runs.context import Run
from ka_ray.runs.execution import is_stored
from ka_ray.runs.precision import choose_precision
from ka_ray.stages.codes_learner import TapMomentsMeter, check_variances
from ka_ray.storage.files import read_json
from ka_ray.student.plan import make_plan
from ka_ray.teachers.on_demand import TeachersOnDemand
from ka_ray.teachers.reading import ReadSpec

MOMENTS = "moments"
"""The folder with the moments of the stacked features."""

MOMENTS_FILE = "sums.safetensors"


def measure_or_load_moments(
    run: Run, name: str, make_meter: MakeMeter
) -> tuple[NamedMoments, dict[str, Any]]:
    """Measure moments in one pass of ``extract.images`` training images through the teachers.

    If the folder holds the moments of an earlier pass, they are loaded instead.

    Args:
        run: The run.
        name: The name of the folder for the moments, in the output folder.
        make_meter: Makes the object that accumulates moments over batches, one in every reducer.

    Returns:
        The moments, and what :func:`ka_ray.distributed.reduce.reduce_images` reports of the pass.
    """
    folder, config = run.folder / name, run.config
    if not is_stored(folder):
        create_shard_folder(folder)
        images, _ = split_for_features(run.training_images, config.extract.images, config.seed)
        work = Extraction(images, folder, row_bytes=0)
        read_spec = ReadSpec(run.plan.paths, run.plan.spaces, config.scores, run.plan.views.teacher_columns)
        read_spec = choose_precision(run, read_spec)
        with run.track_images("moments", len(images.ids)) as on_images:
            moments, summary = reduce_images(
                work,
                config.teachers,
                pools_of(config, run.resources.placement),
                read_spec,
                make_meter,
                config.seed,
                on_images,
            )
        save_moments(moments, folder / MOMENTS_FILE)
        mark_folder_finished(folder, summary)
    return load_moments(folder / MOMENTS_FILE), read_json(folder / DONE)


def measure_spectrum_of_taps(run: Run) -> Spectrum:
    """Measure at every tap the least error that a code of each width can have.

    Raises:
        InputError: The features of a tap never vary.
    """
    config, plan = run.config, run.plan
    stacked = {tap: shape[0] for tap, shape in plan.shapes.items()}
    positions = config.codes.positions_per_image
    moments, summary = measure_or_load_moments(run, MOMENTS, partial(TapMomentsMeter, stacked, positions))
    check_variances(moments)
    spans = METHODS[config.codes.method].spans
    taps = {
        tap: TapSpectrum(
            stacked=channels,
            width=plan.spec.widths[tap],
            max_width=spans(plan.channels[tap])[0],
            relative_errors=moments[tap].spectrum().tolist(),
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


def resolve_widths(run: Run) -> Run:
    """Replace ``codes.widths: {energy: SHARE}`` by the measured widths that keep this share of the variance.

    Returns:
        The run with widths in its config and its plan; the same run if the widths were given.
    """
    rule = run.config.codes.widths
    if not isinstance(rule, EnergyWidths):
        return run
    widths = measure_spectrum_of_taps(run).widths(rule.energy)
    listed = ", ".join(f"{tap} {width} of {run.plan.shapes[tap][0]}" for tap, width in widths.items())
    run.notify(f"codes.widths: {rule.energy:g} of the variance takes {listed}")
    codes = run.config.codes.model_copy(update={"widths": widths})
    config = run.config.model_copy(update={"codes": codes})
    plan = make_plan(config, TeachersOnDemand(config.teachers))
    return dataclasses.replace(run, config=config, plan=plan)
