"""The section of ``report.html`` with the most disputed images."""

from ka_ray.reports.disputed import DisputedImage
from ka_ray.reports.html.elements import element, escape, escape_attribute, paragraph, section
from ka_ray.reports.sections import ReportContent
from ka_ray.reports.sentences import describe_disputed


def disputed_section(report: ReportContent) -> str:
    """Return the images for which student and ensemble are surest of different classes."""
    return section(
        "Where student and ensemble disagree",
        paragraph(describe_disputed(report)),
        element("div", *map(_disputed_image, report.disputed), class_="disputed") if report.disputed else "",
    )


def _disputed_image(image: DisputedImage) -> str:
    answers = {
        "student": f"{image.student} ({image.student_probability:.0%})",
        "ensemble": f"{image.ensemble} ({image.ensemble_probability:.0%})",
        "label": image.label,
    }
    lines = [
        element("span", element("span", who, class_="who"), escape(answer))
        for who, answer in answers.items()
        if answer
    ]
    picture = f'<img src="data:image/jpeg;base64,{escape_attribute(image.picture)}" alt="disputed image">'
    return element("figure", picture, element("figcaption", *lines))
