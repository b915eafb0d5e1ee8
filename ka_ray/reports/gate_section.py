"""The section of a report that says whose images the gates found, and which gate was used."""

from ka_ray.reports.gates import GateQuality
from ka_ray.reports.plain_text import escape_markdown, format_code
from ka_ray.reports.sections import Accuracy, ReportContent
from ka_ray.reports.tables import format_share, format_table


def gate_section(report: ReportContent) -> str:
    """Return the section; empty if no gate was learned.

    Args:
        report: The report of a run.
    """
    choice = report.gate
    if choice is None:
        return ""
    used = f"the gate `{choice.used}`" if choice.used != "none" else "no gate"
    parts = [
        f"The student learned from scores with {used}: a gate says which teacher's classes an image shows."
    ]
    parts += [_describe_gate(name, gate) for name, gate in choice.gates.items()]
    parts += _describe_worth(report.accuracy)
    return "## Whose image is it?\n\n" + "\n\n".join(parts)


def _describe_gate(name: str, gate: GateQuality) -> str:
    changed = format_share(gate.changed)
    text = f"`{name}`: gives {changed} of the images to another teacher than the scores alone do"
    if gate.left_out:
        text += f", and leaves out {format_share(gate.left_out)}, which belong to nobody"
    hints = ", ".join(f"{count:,} images of {escape_markdown(owner)}" for owner, count in gate.hints.items())
    check = gate.check
    if gate.extended is not None:
        text += (
            f". Among the teachers of {format_code(str(gate.extended))}, it divides by the gate of that run; "
            "between these together and each added teacher, the scores decide."
        )
        return text + (f" Known are {hints}." if hints else "")
    if check is None:
        return f"{text}. " + (
            f"Known are {hints}; for the others the scores decide."
            if hints
            else f"It taught itself ({gate.seconds:.1f} s)."
        )
    right, before = format_share(check.owner_accuracy), format_share(check.ungated_owner_accuracy)
    text += (
        f". It learned from {hints} ({gate.seconds:.1f} s). In cross-validation it finds {right} "
        f"of the owners; the scores alone find {before}."
    )
    if check.nobody_found is not None:
        text += (
            f" It would leave out {format_share(check.nobody_found)} of nobody's images, and "
            f"{format_share(check.lost)} of the teachers'."
        )
    curve = ", ".join(f"{count}: {format_share(share)}" for count, share in check.learning_curve.items())
    return text + (f" By the number of images per teacher it would find: {curve}." if curve else "")


def _describe_worth(accuracy: Accuracy) -> list[str]:
    gate = accuracy.gate
    if gate is None or gate.ensemble is None:
        return []
    rows = [
        ("without a gate", accuracy.ensemble, gate.ungated_owner_accuracy),
        ("with the gate", gate.ensemble, gate.owner_accuracy),
        ("every owner known", gate.oracle, None if gate.oracle is None else 1.0),
        ("student", accuracy.union, None),
    ]
    table = [
        (name, format_share(right), format_share(owner), format_share(gate.closed(accuracy.ensemble, right)))
        for name, right, owner in rows
    ]
    header = ("ensemble", "accuracy on all classes", "owner right", "share of the gap closed")
    return [
        "On the labelled evaluation images. The gap is that between the ensemble without a gate and one that "
        "knows every owner.",
        format_table(header, table),
    ]
