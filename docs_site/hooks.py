"""Hooks of MkDocs: add generated pages, and adapt the text of pages to the site."""

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs_site.config_reference import write_config_reference
from docs_site.outside_files import AS_THEY_ARE, find_outside_files, published_path, rewrite_links, show_text

STYLE = "style.css"
KEEP_KEYS_WHOLE = """.md-typeset td:first-child code { white-space: nowrap; word-break: normal }
.formula { margin: 1em 0; overflow-x: auto; font-size: 1.15em }
"""
"""Keys in tables are not broken into two lines."""

ROLE = re.compile(r":(?:func|class|data|mod|meth|attr):(?=<code>)")


def format_formula(source: str, *_: Any, **__: Any) -> str:
    """Return a formula in LaTeX as MathML, which browsers show without a script."""
    return f'<div class="formula">{convert(source, display="block")}</div>'


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show blocks of the language ``math`` as formulas, as GitHub does, and add the style sheet."""
    config.extra_css.append(STYLE)
    fence = {"name": "math", "class": "math", "format": format_formula}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference of config keys and the linked files from outside of docs/."""
    files.append(File.generated(config, "reference/config.md", content=write_config_reference()))
    files.append(File.generated(config, STYLE, content=KEEP_KEYS_WHOLE))
    api = str(Path(__file__).with_name("api.md"))
    files.append(File.generated(config, "reference/api.md", abs_src_path=api))
    for path in find_outside_files():
        name = published_path(path)
        if path.suffix in {".md", *AS_THEY_ARE}:
            files.append(File.generated(config, name, abs_src_path=str(path)))
        else:
            files.append(File.generated(config, name, content=show_text(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links at where their targets are published."""
    source = page.file.abs_src_path
    return markdown if source is None else rewrite_links(markdown, Path(source))


def on_page_content(html: str, **_: Any) -> str:
    """Leave out the roles of Sphinx in docstrings, such as ``:func:``."""
    return ROLE.sub("", html)
