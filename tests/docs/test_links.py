"""Every page is linked and answers one question, and links, paths, keys and names in the pages exist."""

import re

import pytest
from doc_pages import (
    DOCS,
    FOLDERS,
    MARKDOWN,
    PAGES,
    REPOSITORY,
    find_anchors,
    find_headings,
    find_links,
    inline_code,
    parse_tokens,
)

import ka_ray
from ka_ray.config import Config

PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*")
KEY = re.compile(
    r"([a-z_]+(?:\.\w+)+)(?<!\.safetensors)(?<!\.json)"
    r"(?<!\.onnx)(?<!\.xml)(?<!\.bin)(?<!\.pt2)(?<!\.ts)(?:[:=] ?.*)?"
)
INDEX = REPOSITORY / "docs" / "README.md"
README = REPOSITORY / "README.md"


def relative(path):
    return str(path.relative_to(REPOSITORY))


every_page = pytest.mark.parametrize("page", MARKDOWN, ids=relative)


@every_page
def test_targets_of_links_exist(page):
    for link in find_links(page):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: {target} does not exist"
        assert target.is_relative_to(REPOSITORY), f"{link} is outside of the repository"
        assert not anchor or anchor in find_anchors(target), f"{link}: no such heading"


@every_page
def test_paths_in_the_text_exist(page):
    named = [code for code in inline_code(page) if PATH.fullmatch(code)]
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


@every_page
def test_names_of_the_python_api_in_the_text_exist(page):
    matches = (re.fullmatch(r"ka_ray\.(\w+)", code) for code in inline_code(page))
    assert {match[1] for match in matches if match} <= set(ka_ray.__all__)


def find_sections(annotation):
    """Yield every config section (pydantic model) in a type annotation."""
    if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from find_sections(argument)


def key_exists(models, parts):
    """Return whether one of some config sections has a key, given as a list of its parts."""
    if not parts:
        return True
    fields = [model.model_fields[parts[0]] for model in models if parts[0] in model.model_fields]
    return any(key_exists(list(find_sections(field.annotation)), parts[1:]) for field in fields)


def test_key_exists_finds_nested_keys_and_rejects_unknown_ones():
    assert key_exists([Config], ["baselines", "distill", "learning_rate"])
    assert key_exists([Config], ["images", "label_column"])
    assert not key_exists([Config], ["joint", "epoch"])


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_config_keys_in_the_text_exist(page):
    keys = [match[1] for code in inline_code(page) if (match := KEY.fullmatch(code))]
    keys = [key.split(".") for key in keys if key.split(".")[0] in Config.model_fields]
    assert [".".join(key) for key in keys if not key_exists([Config], key)] == []


def test_the_index_lists_the_question_of_every_page():
    pages = [page for page in DOCS if page != INDEX]
    questions = {relative(page): find_headings(page)[0] for page in pages}
    assert {name: title for name, title in questions.items() if not title.endswith("?")} == {}
    rows = dict(re.findall(r"^\| (.*\?) \| \[.*\]\((.*)\) \|$", INDEX.read_text("utf-8"), re.MULTILINE))
    assert {f"docs/{file}": question for question, file in rows.items()} == questions


def test_the_readme_links_to_every_page_of_the_documentation():
    assert {relative(page) for page in DOCS if page != INDEX} <= set(find_links(README))


def test_the_readme_is_one_page_with_one_picture():
    assert len(README.read_text("utf-8").splitlines()) <= 100
    pictures = [
        token for line in parse_tokens(README) for token in line.children or () if token.type == "image"
    ]
    assert len(pictures) == 1


def test_the_layout_names_every_folder_and_only_files_that_exist():
    text = (REPOSITORY / "docs" / "layout.md").read_text("utf-8")
    tree = text.split("```text\nka_ray/\n")[1].split("\njobs/ ")[0]
    parts = re.split(r"^  (?=[\w.]+)(?! )", tree, flags=re.MULTILINE)[1:]
    folders = {part.split("/")[0]: part for part in parts if re.match(r"\w+/", part)}
    package = REPOSITORY / "ka_ray"
    assert folders.keys() == {path.parent.name for path in package.glob("*/__init__.py")}
    named = {(folder, name) for folder, part in folders.items() for name in re.findall(r"\w+\.py", part)}
    assert [pair for pair in named if not (package / pair[0] / pair[1]).exists()] == []
    assert len(named) > 50
