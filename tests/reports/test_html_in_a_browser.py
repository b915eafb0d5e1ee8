"""Test report.html in a browser: no errors, and nothing wider than the screen of a phone."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from report_kinds import make_report

from ka_ray.reports.figures import draw_confusion_matrix, draw_loss_curves
from ka_ray.sparse_counts import SparseCounts

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE = 360
"""Width of the window, in pixels."""

MEASURE = """
<script>
addEventListener("load", () => {
  document.querySelectorAll("details").forEach((block) => { block.open = true; });
  const wide = [...document.querySelectorAll("body *")]
    .filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5)
    .map((one) => one.tagName);
  document.title = `inner=${innerWidth} scroll=${document.documentElement.scrollWidth} wide=[${wide}]`;
});
</script>
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]


def browse(page: Path, *options: str) -> tuple[str, str]:
    """Open a page in a browser without a window; return its elements and what the browser logged."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--enable-logging=stderr", "--v=0"]
    command += ["--window-size=1200,900", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout, done.stderr


def draw_figures(folder: Path) -> dict[str, bytes]:
    confusion = SparseCounts.from_dense(np.eye(4, dtype=int))
    history = [{"images": images, "losses": {"loss": 1.0 / images}} for images in (1, 2, 3)]
    drawn = draw_confusion_matrix(confusion, ["cat", "dog", "cow", "a|b"], folder)
    drawn += draw_loss_curves({"joint": history}, folder)
    return {path.stem: path.read_bytes() for path in drawn}


@pytest.mark.parametrize("kind", ["unlabelled", "started", "gate", "hostile"])
def test_a_browser_shows_the_page_without_errors_and_not_wider_than_a_phone(
    kind: str, tmp_path: Path
) -> None:
    page, copy, frame = (tmp_path / f"{name}.html" for name in ("report", "copy", "frame"))
    report = make_report(kind)
    long_name = report.model_copy(update={"unreadable": [*report.unreadable, "x" * 300]})
    page.write_text(long_name.to_html(draw_figures(tmp_path)))
    dumped, logged = browse(page)
    assert "<h2>Accuracy</h2>" in dumped
    assert "CONSOLE" not in logged
    # Windows are at least 500 pixels wide: a frame is as narrow as a phone. The page's own policy refuses
    # scripts, so the copy that measures has none.
    source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    copy.write_text(source.replace("</body>", f"{MEASURE}</body>"))
    frame.write_text(
        f'<title>none</title><iframe src="copy.html" style="border:0;width:{PHONE}px;height:800px"></iframe>'
        "<script>addEventListener('load', () => setTimeout(() => "
        "{ document.title = document.querySelector('iframe').contentDocument.title; }, 0));</script>"
    )
    shown, _ = browse(frame, "--allow-file-access-from-files", "--hide-scrollbars")
    assert re.findall("<title>(.*?)</title>", shown) == [f"inner={PHONE} scroll={PHONE} wide=[]"]


def test_the_policy_of_the_page_stops_a_script(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    source = make_report("labelled").to_html()
    page.write_text(source.replace("</body>", "<script>document.title = 'it ran'</script></body>"))
    dumped, logged = browse(page)
    assert "<title>run</title>" in dumped
    assert "Content Security Policy" in logged
