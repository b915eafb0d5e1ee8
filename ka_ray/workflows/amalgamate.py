"""The mission, top-down: from images and teachers to one student, its report and its figures."""

from ka_ray.amalgamation.label_sets import describe
from ka_ray.config import Config
from ka_ray.images.split import check_batches, check_labels, split_images
from ka_ray.reports.report import Report
from ka_ray.runs.context import open_run
from ka_ray.runs.extension import check_extension
from ka_ray.runs.output_folder import prepare_output_dir
from ka_ray.runs.publish import publish
from ka_ray.runs.statistics import settle_widths
from ka_ray.runs.steps import StudentJob, evaluate_student, extract, learn, teach_missing
from ka_ray.student.plan import make_plan
from ka_ray.teachers import build_teacher


def amalgamate(config: Config) -> Report:
    """Merge the teachers into one student.

    Every stage leaves its result in the output folder; called again with the same config, the run goes on
    after the last stage that stands.

    Args:
        config: The whole run; see ``jobs/configs/folder.yaml`` for a commented one.

    Returns:
        What came out; also in the output folder as ``report.json`` and ``report.md``.

    Raises:
        InputError: Something given cannot work; raised before the first image is read where that is possible.
    """
    plan = make_plan(config, [build_teacher(teacher) for teacher in config.teachers])
    extension = check_extension(config, plan)
    learned_from, judged_on = split_images(config)
    check_batches(config, learned_from)
    if config.baseline == "scratch":
        check_labels(plan.spec.classes, learned_from)
    folder = prepare_output_dir(config)
    with open_run(config, folder, config.name) as run:
        run.tell(describe(plan.label_sets), extension)
        taught = teach_missing(run, learned_from)  # teachers without a checkpoint
        taught, plan = settle_widths(taught, plan, learned_from)  # by energy: measured
        extract(taught, plan, learned_from, config.joint.any_steps)  # to disk: stacked features, scores
        learn(taught, [StudentJob("", taught.config, plan, folder)])  # codes, layers, joint
        evaluated = evaluate_student(taught, plan, judged_on)
        return publish(taught, plan, evaluated)
