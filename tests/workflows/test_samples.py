"""Test the sample images of the demo."""

from PIL import Image

from ka_ray.config import ListImages
from ka_ray.workflows.demo import save_samples


def test_a_label_cannot_choose_another_folder(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("path,label\na.png,x/../../up\n")
    images = ListImages(source="list", path=tmp_path / "list.csv", label_column="label", size=8)
    paths = save_samples(images, tmp_path / "out" / "samples")
    assert paths == [tmp_path / "out" / "samples" / "0_x_.._.._up.png"]
    assert [path.name for path in tmp_path.rglob("*.png")].count("a.png") == 1
    assert {path.parent.name for path in tmp_path.rglob("0_*")} == {"samples"}
