"""Test report.html: well-formed, self-contained, with every section, and names are text in it."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_kinds import HOSTILE, KINDS, make_report

from ka_ray.reports.html.elements import sentence, share_bar
from ka_ray.reports.report import Report
from ka_ray.reports.timeline import TimelineStep

VOID = {"meta", "img"}
EVERYWHERE = ["Accuracy", "Size", "Time", "Plan", "How to repeat it", "Skipped images: 1 could not be read"]
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


class Page(HTMLParser):
    """Reads a page, and checks that each element that begins also ends, in the right order.

    Attributes:
        elements: Name and attributes of every element, in the order in which they begin.
        texts: Text of every element without the elements in it, in the order in which they end.
    """

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.pieces: list[str] = []
        self._open: list[tuple[str, list[str]]] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, []))

    def handle_endtag(self, tag: str) -> None:
        name, texts = self._open.pop()
        assert name == tag
        self.texts.append((tag, "".join(texts)))

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1][0] != "style":
            self.pieces.append(data)
        if self._open:
            self._open[-1][1].append(data)

    def all_of(self, tag: str) -> list[str]:
        """Return the text of every element of a name, without the elements in it."""
        return [text for name, text in self.texts if name == tag]

    @property
    def text(self) -> str:
        """All text that a reader sees."""
        return " ".join("".join(self.pieces).split())


def find_section(page: str, title: str) -> str:
    """Return the HTML of the section of a title."""
    (found,) = re.findall(rf"<section><h2>{title}</h2>(.*?)</section>", page, re.DOTALL)
    return str(found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_well_formed_and_loads_nothing(kind: str) -> None:
    report = make_report(kind)
    source = report.to_html({"losses": PNG, "confusion": PNG})
    page = Page(source)
    assert source.startswith("<!DOCTYPE html>\n<html lang=")
    names = {tag for tag, _ in page.elements}
    assert names.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form", "a", "svg"})
    attributes = {key for _, attrs in page.elements for key in attrs}
    assert not {key for key in attributes if key.startswith("on")}
    assert attributes.isdisjoint({"href", "srcset", "action", "background", "poster"})
    sources = [attrs["src"] for _, attrs in page.elements if "src" in attrs]
    assert len(sources) == 2 + len(report.disputed)
    assert all(str(one).startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for one in sources)
    (style,) = page.all_of("style")
    assert not re.search(r"url\(|@import|https?:", style)
    policies = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


@pytest.mark.parametrize(
    ("kind", "others"),
    [
        ("labelled", ["Codes and layers"]),
        ("unlabelled", ["Codes and layers"]),
        ("baseline", []),
        (
            "started",
            ["Codes and layers", "Start", "Which student is kept", "After every epoch of joint learning"],
        ),
        ("gate", ["Codes and layers", "Whose image is it?"]),
        ("bad", ["Codes and layers"]),
        ("earlier version", ["Codes and layers"]),
    ],
)
def test_a_page_has_the_sections_for_which_the_run_has_content(kind: str, others: list[str]) -> None:
    report = make_report(kind)
    titles = Page(report.to_html()).all_of("h2")
    assert sorted(titles) == sorted([*EVERYWHERE, *others])
    # Figures appear if there are any that a section shows; accuracies are drawn in their table.
    assert Page(report.to_html({"accuracy": PNG})).all_of("h2") == titles
    assert set(Page(report.to_html({"losses": PNG})).all_of("h2")) - set(titles) == {"Figures"}


def test_every_word_and_number_of_the_markdown_tables_is_in_the_page() -> None:
    for kind in set(KINDS) - {"hostile"}:
        report = make_report(kind)
        text = Page(report.to_html()).text
        lines = [line for line in report.to_markdown().splitlines() if line.startswith("| ")]
        assert len(lines) > 10
        for line in lines:
            for cell in re.split(r"(?<!\\)\|", line)[1:-1]:
                shown = re.sub(r"\\(.)", r"\1", cell).strip().strip("*")
                # The table of stages is drawn as a timeline, whose numbers are followed by their units.
                titles = ("---", "---:", "stage", "seconds", "images per second")
                assert shown in text or shown in titles, (kind, line)


def test_the_verdict_comes_first_and_the_warnings_stand_below_it() -> None:
    page = make_report("bad").to_html()
    header = page[page.index("<header>") : page.index("</header>")]
    assert page.index("<header>") < page.index("<section>")
    assert 'class="verdict bad"' in header
    assert "<strong>-100.0</strong>" in header
    warnings = Page(header[header.index('<ul class="warnings">') :]).text
    assert "Warning: The student has learned nothing.Warning: The loss of joint did not fall." in warnings
    assert header.index('class="sentence"') < header.index('class="warnings"')
    assert 'class="warnings"' not in make_report("labelled").to_html()


def test_without_labels_there_is_no_table_of_accuracies() -> None:
    section = find_section(make_report("unlabelled").to_html(), "Accuracy")
    assert "have no labels" in section
    assert "Agreement of student and ensemble on 4 images: 1.000" in section
    assert "<table>" not in section


def test_the_start_and_the_student_that_were_kept_are_marked() -> None:
    page = make_report("started").to_html()
    rows = re.findall(r'<tr class="kept"><th scope="row">(.*?)</th>', page)
    assert rows == ["teacher low", "epoch 1", "student"]
    assert "aligned does not apply: the networks differ" in page
    assert 'class="kept"' not in find_section(page, "After every epoch of joint learning")


def test_bars_are_as_long_as_the_shares() -> None:
    section = find_section(make_report("gate").to_html(), "Accuracy")
    widths = re.findall(
        r'<span>([\d.]+)</span><span class="track"><span class="bar (\w+)" style="(.*?)"', section
    )
    assert ("0.750", "student", "margin-left:0.00%;width:75.00%") in widths
    assert ("0.875", "teachers", "margin-left:0.00%;width:87.50%") in widths
    assert share_bar("not measured", "student") == share_bar("-", "student") == ""


def test_the_bars_of_the_steps_are_where_they_were_in_time() -> None:
    steps = [("starting Ray", 2.0, 3.5), ("evaluate", 6.0, 1.0), ("learning gates", 7.0, 0.04)]
    timeline = [TimelineStep(step=name, began=began, seconds=seconds) for name, began, seconds in steps]
    section = find_section(
        make_report("labelled").model_copy(update={"timeline": timeline}).to_html(), "Time"
    )
    assert re.findall(r'"name">(.*?)<', section) == ["starting Ray", "evaluate"]
    assert '"time">3.5 s<' in section
    places = [
        (float(begin), float(width))
        for begin, width in re.findall(r"margin-left:([\d.]+)%;width:([\d.]+)%", section)
    ]
    assert places == [
        (pytest.approx(100 * 2 / 7, abs=0.01), 50),
        (pytest.approx(100 * 6 / 7, abs=0.01), pytest.approx(100 / 7, abs=0.01)),
    ]


def test_without_steps_the_time_section_has_the_stages_in_the_order_in_which_they_ran() -> None:
    section = find_section(make_report("labelled").to_html(), "Time")
    assert re.findall(r'<th scope="row">(extract|joint)', section) == ["extract", "joint"]
    assert '<td data-label="seconds"><span>12.2</span></td>' in section
    assert "timeline" not in section
    assert Page(make_report("labelled").model_copy(update={"stages": {}}).to_html()).text


def test_the_page_says_how_to_repeat_the_run() -> None:
    section = find_section(make_report("labelled").to_html(), "How to repeat it")
    assert "<pre>ka-ray run run.yaml --output runs/run_again</pre>" in section
    assert "<details><summary>Config, with all defaults</summary><pre>name: run\n" in section
    assert "ka_ray 0.1.0, torch 2.11.0" in section
    assert "<code>0123abcd</code>" in section
    assert "run.yaml" not in find_section(make_report("earlier version").to_html(), "How to repeat it")


def test_names_are_text_at_every_place() -> None:
    report = make_report("hostile")
    for source in (report.to_html(), report._repr_html_()):
        page = Page(source)
        for name in HOSTILE:
            assert page.text.count(name.replace("`", "")) + page.text.count(name) >= 1, name
        assert {tag for tag, _ in page.elements}.isdisjoint({"script", "b", "i"})
        assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
        # Notebooks search each element for formulas.
        inner = [text for tag, text in page.texts if tag not in {"style", "title"}]
        assert not any(text.count("$") > 1 or "\\(" in text for text in inner)
    assert Page(report.to_html()).text.count(HOSTILE[0]) >= 8
    hostile_name = report.model_copy(update={"name": "</title><script>alert(1)</script>$x$"})
    page = Page(hostile_name.to_html())
    assert page.all_of("title") == ["</title><script>alert(1)</script>$x$"]
    assert "script" not in {tag for tag, _ in page.elements}


def test_control_characters_are_visible_and_code_in_our_sentences_stays_code() -> None:
    assert Page(f"<p>{sentence('a' + chr(27) + '[2J')}</p>").text == r"a\x1b[2J"
    assert sentence("set `a.b` for <b>") == "set <code>a.b</code> for &lt;b&gt;"
    assert sentence("one ` only") == "one ` only"


@pytest.mark.parametrize("kind", KINDS)
def test_a_notebook_shows_the_verdict_and_tables_without_figures(kind: str) -> None:
    report = make_report(kind)
    shown = report._repr_html_()
    page = Page(shown)
    assert {tag for tag, _ in page.elements}.isdisjoint({"img", "style", "html", "body", "section"})
    assert all(f"Warning: {text}".replace("`", "") in page.text.replace("`", "") for text in report.warnings)
    assert len(re.findall("<table>", shown)) == (2 if report.accuracy.labelled else 1)


def test_a_page_holds_its_figures(tmp_path: Path) -> None:
    (tmp_path / "losses.png").write_bytes(PNG)
    path = make_report("labelled").save_page(tmp_path, [tmp_path / "losses.png"])
    assert path == tmp_path / "report.html"
    (image,) = re.findall(r'<img src="data:image/png;base64,(.*?)" alt="Losses">', path.read_text())
    assert base64.b64decode(image) == PNG
    assert "<img" not in make_report("labelled").to_html()


def test_a_report_of_an_earlier_version_is_read() -> None:
    content = make_report("labelled").model_dump(mode="json")
    del content["origin"], content["teacher_classes"]
    assert "How to repeat it" in Report.model_validate(content).to_html()


def test_disputed_images_stand_with_both_answers_and_the_label() -> None:
    shown = find_section(make_report("disputed").to_html(), "Where student and ensemble disagree")
    page = Page(shown)
    sources = [attributes["src"] for name, attributes in page.elements if name == "img"]
    assert sources == ["data:image/jpeg;base64,/9j/4AAQ"] * 2
    assert "studentcat (88%)" in page.text
    assert "ensemblecow (75%)" in page.text
    assert page.text.count("label") == 1  # the second image has none
    assert "Where student and ensemble disagree" not in make_report("labelled").to_html()


def test_speeds_stand_beside_the_sizes() -> None:
    report = make_report("disputed")
    size = Page(find_section(report.to_html(), "Size"))
    assert "1.5" in size.all_of("span")
    assert "617" in size.all_of("span")
    assert "2 threads" in size.text
    assert "threads" not in Page(find_section(make_report("labelled").to_html(), "Size")).text
