"""The site builds without a warning, shows what the pages say, and loads nothing from elsewhere."""

import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser

import pytest
import yaml
from doc_pages import DOCS, REPOSITORY, parse_tokens

from ka_ray.config import Config

COUNTED = {"h1", "h2", "h3", "h4", "li", "table", "pre", "tr"}


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, in which tags name Python functions."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


class Contents(HTMLParser):
    """Counts the elements of the article of a page, and keeps what the page loads from elsewhere."""

    def __init__(self):
        super().__init__()
        self.elements, self.loaded, self.in_article = Counter(), [], False

    def handle_starttag(self, tag, attrs):
        self.in_article |= tag == "article"
        self.elements[tag] += self.in_article
        address = dict(attrs).get("href" if tag == "link" else "src") or ""
        if tag in ("link", "script", "img", "iframe") and "://" in address:
            self.loaded.append(address)

    def handle_endtag(self, tag):
        self.in_article &= tag != "article"


def read_contents(path):
    contents = Contents()
    contents.feed(path.read_text("utf-8"))
    return contents


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    # An unreachable proxy: a build that asks the network for anything fails.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    environment = os.environ | nowhere | {"PYTHONPATH": str(REPOSITORY), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


def find_page(site, page):
    return site / ("index.html" if page.name == "README.md" else f"{page.stem}.html")


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_a_page_of_the_site_has_the_elements_of_its_markdown(site, page):
    expected = Counter(token.tag for token in parse_tokens(page) if token.nesting == 1)
    kinds = Counter(token.info for token in parse_tokens(page) if token.type == "fence")
    expected["pre"] = kinds.total() - kinds["math"]
    shown = read_contents(find_page(site, page)).elements
    assert {tag: shown[tag] for tag in COUNTED} == {tag: expected[tag] for tag in COUNTED}
    assert shown["math"] == kinds["math"]


def test_no_page_loads_anything_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(DOCS)
    assert {str(page): loaded for page in pages if (loaded := read_contents(page).loaded)} == {}


def test_the_navigation_has_every_page_once():
    nav = yaml.load((REPOSITORY / "mkdocs.yml").read_text(), Loader)["nav"]
    named = re.findall(r"'([\w.-]+\.md)'", str(nav))
    assert sorted(named) == sorted(page.name for page in DOCS)


def test_the_reference_has_every_key_of_a_config(site):
    text = (site / "reference" / "config.html").read_text("utf-8")
    assert {key for key in Config.model_fields if f"<td><code>{key}</code></td>" not in text} == set()
    assert 'id="jointaugment"' in text


def test_the_reference_has_every_name_of_the_python_api(site):
    import ka_ray

    text = (site / "reference" / "api.html").read_text("utf-8")
    assert {name for name in ka_ray.__all__ if f'id="ka_ray.{name}"' not in text} == set()


def test_files_outside_of_docs_are_published(site):
    assert (site / "repository/jobs/configs/folder.yaml.html").is_file()
    assert (site / "repository/benchmarks/results/digits_accuracy.png").is_file()
    assert "repository/jobs/configs/folder.yaml.html" in (site / "index.html").read_text("utf-8")
