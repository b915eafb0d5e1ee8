"""Students as versions of registered models; the best one is the champion."""

from mlflow import MlflowClient, MlflowException
from mlflow.entities.model_registry import ModelVersion

from ka_ray.tracking.records import StudentVersion

CHAMPION = "champion"
"""The alias of the version that is best on the same images; `models:/NAME@champion` loads it."""

MEASURE, VALUE, JUDGED_ON = "ka_ray.measure", "ka_ray.value", "ka_ray.judged_on"
"""Tags of a version: what it was judged by, its value, and on what."""

SHOWN_DIGITS = 4
"""Digits of a value that messages show."""


def register(client: MlflowClient, run_id: str, model_id: str, student: StudentVersion) -> str:
    """Register a logged model as a version, once for each run, and make it the champion if it is the best.

    A version becomes the champion if there is none, or if it was judged as the champion was, on the same
    images, and its value is higher.

    Args:
        client: The client of the server or database.
        run_id: The id of the run.
        model_id: The id of the logged model.
        student: The version.

    Returns:
        What came of it, in a sentence.
    """
    try:
        client.create_registered_model(student.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = _find_version(client, student.name, run_id)
    if version is None:
        judged = {MEASURE: student.measure, VALUE: repr(student.value), JUDGED_ON: student.judged_on}
        source = client.get_logged_model(model_id).artifact_location
        version = client.create_model_version(
            student.name, source, run_id, tags=judged, description=student.card, model_id=model_id
        )
    champion = _find_champion(client, student.name)
    told = f"model:   {student.name}, version {version.version}"
    if champion is not None and champion.version == version.version:
        return f"{told}, the champion"
    is_best, reason = (True, "the first version") if champion is None else _compare(student, champion)
    if champion is None or is_best:
        client.set_registered_model_alias(student.name, CHAMPION, version.version)
        return f"{told}, the new champion: {reason}"
    return f"{told}; the champion stays version {champion.version}: {reason}"


def _find_version(client: MlflowClient, name: str, run_id: str) -> ModelVersion | None:
    """Return the version that an earlier attempt at the same run has registered."""
    versions = client.search_model_versions(f"name = '{name}'")
    return next((version for version in versions if version.run_id == run_id), None)


def _find_champion(client: MlflowClient, name: str) -> ModelVersion | None:
    aliases = client.get_registered_model(name).aliases
    return client.get_model_version(name, aliases[CHAMPION]) if CHAMPION in aliases else None


def _compare(student: StudentVersion, champion: ModelVersion) -> tuple[bool, str]:
    """Return whether a student is better than the champion, and how they compare."""
    if not student.measure:
        return False, "this one was not judged"
    tags = champion.tags
    if (tags.get(MEASURE), tags.get(JUDGED_ON)) != (student.measure, student.judged_on):
        return False, "it was judged on other images"
    theirs = float(tags[VALUE])
    figures = f"{student.measure} {student.value:.{SHOWN_DIGITS}f} against {theirs:.{SHOWN_DIGITS}f}"
    is_better = student.value > theirs
    return is_better, f"{'better' if is_better else 'not better'}, {figures}"
