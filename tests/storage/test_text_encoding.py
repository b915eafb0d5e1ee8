"""Test that text files are UTF-8 whatever the locale of the machine is."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ka_ray

FILES = [*Path(ka_ray.__file__).parent.rglob("*.py"), *(Path(__file__).parents[2] / "jobs").rglob("*.py")]
TEXT_METHODS = ("read_text", "write_text")
MODE = re.compile(r"[rwax+bt]+")


def list_calls_in_the_locales_encoding(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that open a file as text without saying its encoding."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        says_encoding = any(keyword.arg == "encoding" for keyword in call.keywords)
        constants = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
        first_modes = [
            a for a in call.args[:1] if isinstance(a, ast.Constant) and MODE.fullmatch(str(a.value))
        ]
        modes = [value for value in constants if isinstance(value, str) and MODE.fullmatch(value)]
        if isinstance(call.func, ast.Name):
            is_text = call.func.id == "open" and not any("b" in mode for mode in modes)
        elif isinstance(call.func, ast.Attribute) and call.func.attr == "open":
            # The `open` of a path has a mode as its first argument, or none; that of an archive, a file.
            is_path = bool(first_modes) or not (call.args or call.keywords)
            is_text = is_path and not any("b" in mode for mode in modes)
        else:
            is_text = isinstance(call.func, ast.Attribute) and call.func.attr in TEXT_METHODS
        if is_text and not says_encoding:
            yield call.lineno


def test_every_text_file_is_opened_with_its_encoding():
    found = {
        str(path): lines
        for path in FILES
        if (lines := [*list_calls_in_the_locales_encoding(ast.parse(path.read_text(encoding="utf-8")))])
    }
    assert found == {}


def test_the_check_sees_calls_without_an_encoding():
    code = "open('a')\nPath('a').open()\np.read_text()\np.write_text('a')\np.open('w')\np.open('rb')"
    code += "\nImage.open(x)\ntarfile.open(fileobj=x, mode='r:')\ntar.open(x, 'w')"
    assert [*list_calls_in_the_locales_encoding(ast.parse(code))] == [1, 2, 3, 4, 5]


CODE = """
import locale, sys
from pathlib import Path
from ka_ray.config import Config
from ka_ray.errors import InputError, run_with_exit_code
from ka_ray.runs.output_folder import CONFIG, prepare_output_dir, read_output_config
from ka_ray.storage.files import read_text, write_text

assert locale.getpreferredencoding(False).lower() not in ("utf-8", "utf8"), "the test tests nothing"
folder = Path(sys.argv[1])
config = Config.load(folder / "run.yaml", [f"output={folder / 'out'}"])
assert config.teachers[0].classes[0] == "caf\\u00e9 \\u2603"
prepare_output_dir(config)
assert read_output_config(folder / "out", Config)["teachers"][0]["classes"][0] == "caf\\u00e9 \\u2603"
write_text(folder / "report.md", "caf\\u00e9 \\u2603\\n")
assert read_text(folder / "report.md") == "caf\\u00e9 \\u2603\\n"

def work():
    print("caf\\u00e9 \\u2603")
    raise InputError("caf\\u00e9 \\u2603")

sys.exit(run_with_exit_code(work))
"""


def test_names_beyond_ascii_survive_a_locale_that_lacks_them(tmp_path, config_tree):
    names = tmp_path / "names.txt"
    names.write_text("caf\u00e9 \u2603\nb\nc\nd\ne\n", encoding="utf-8")
    config_tree["teachers"][0]["classes"] = str(names)
    config_tree["tracking"] = {"backend": "none"}
    text = str(config_tree).replace("'", '"').replace("None", "null")  # a YAML mapping in one line
    (tmp_path / "run.yaml").write_text(f"# \u00e9\n{text}\n", encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)], env=os.environ | locale, capture_output=True, check=False
    )
    assert done.returncode == 2, done.stderr.decode(errors="replace")
    assert done.stdout.strip() == rb"caf\xe9 \u2603"
    assert done.stderr.strip() == rb"error: caf\xe9 \u2603"
    assert (tmp_path / "report.md").read_bytes() == "caf\u00e9 \u2603\n".encode()
