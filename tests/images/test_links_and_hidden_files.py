"""Folders of images: links are followed as torchvision does it, hidden files are left out and counted."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from source_makers import load, make_folder, make_list, make_parquet, make_shards, read
from torchvision.datasets import ImageFolder

from ka_ray.errors import InputError, ReadError
from ka_ray.images import Source, open_source, read_chunk
from ka_ray.images.hidden_files import HiddenFiles
from ka_ray.storage import file_names, read_errors
from ka_ray.storage.file_names import list_files
from ka_ray.storage.uris import to_path


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path, "PNG")


def open_folder(folder: Path, **keys: Any) -> Source:
    return open_source(load({"source": "folder", "path": str(folder), **keys}))


def list_ours(source: Source) -> list[tuple[str, str]]:
    return [(path, label) for chunk in source.chunks for path, label in chunk.payload]


def list_torchvision(folder: Path) -> list[tuple[str, str]]:
    dataset = ImageFolder(str(folder))
    return [(path, dataset.classes[target]) for path, target in dataset.samples]


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """Class folders, some of them links, with files and folders that are links, too."""
    for name in ("store/a.png", "store/deep/b.jpg", "other/c.png", "photos/dog/d.png", "photos/dog/in/e.png"):
        save(tmp_path / name)
    folder = tmp_path / "photos"
    (folder / "cat").symlink_to(tmp_path / "store")  # a class folder
    (folder / "kitten").symlink_to("../store")  # relative, and the same folder again
    (folder / "dog" / "linked").symlink_to(tmp_path / "other")  # a folder inside of a class folder
    (folder / "dog" / "f.png").symlink_to(tmp_path / "store" / "a.png")  # a file
    (folder / "chain").symlink_to(folder / "cat")  # a link to a link
    return folder


def test_linked_folders_and_files_are_those_of_torchvision(linked: Path) -> None:
    ours = list_ours(open_folder(linked))
    assert sorted(ours) == sorted(list_torchvision(linked))
    assert [label for _, label in ours] == [label for _, label in list_torchvision(linked)]
    assert len(ours) == 10
    columns = read(load({"source": "folder", "path": str(linked)}))
    assert columns["label"].tolist() == [label for _, label in ours]


def test_the_folder_itself_may_be_a_link(linked: Path) -> None:
    (linked.parent / "link").symlink_to(linked)
    assert list_ours(open_folder(linked.parent / "link")) == [
        (path.replace(str(linked), str(linked.parent / "link")), label)
        for path, label in list_ours(open_folder(linked))
    ]


def test_hidden_files_are_left_out_and_counted_where_torchvision_reads_them(linked: Path) -> None:
    visible = list_ours(open_folder(linked))
    names = ["dog/@eaDir/d.png/SYNOPHOTO_THUMB_M.jpg", "@eaDir/x.png", ".ipynb_checkpoints/d-checkpoint.png"]
    names += ["dog/._d.png", "dog/._f.png", "dog/.d.png.png", "dog/.Trash-0/old.png", "dog/Thumbs.db"]
    for name in names:
        save(linked / name)
    source = open_folder(linked)
    assert list_ours(source) == visible
    assert source.class_names == ("cat", "chain", "dog", "kitten")
    assert {*list_torchvision(linked)} - {*visible} == {
        (str(linked / name), name.split("/")[0]) for name in names if not name.endswith(".db")
    }
    assert source.note == (
        f"{linked}: left out hidden files and folders: 2 .*, 2 ._*, 1 .ipynb_checkpoints, 2 @eaDir, "
        "1 Thumbs.db"
    )


def test_hidden_files_are_left_out_of_remote_folders_too(linked: Path) -> None:
    for name in ("@eaDir/x.png", "@eaDir/y.png", "dog/._d.png"):
        save(linked / name)
    hidden = HiddenFiles()
    names = list_files(to_path(f"file://{linked}"), leave_out=hidden)
    assert names == list_files(linked, leave_out=HiddenFiles())
    assert not any("@eaDir" in name or "._" in name for name in names)
    assert "dog/d.png" in names
    assert hidden.note == "left out hidden files and folders: 1 ._*, 1 @eaDir"


def test_a_loop_of_links_is_refused(linked: Path) -> None:
    (linked / "dog" / "back").symlink_to(linked)
    with pytest.raises(InputError, match=r"dog/back leads back to .*/photos, a folder that it is in"):
        open_folder(linked)


def test_a_loop_through_several_links_is_refused(linked: Path) -> None:
    (linked.parent / "store" / "to_other").symlink_to(linked.parent / "other")
    assert len(list_ours(open_folder(linked))) == 13  # no loop yet: three classes hold it
    (linked.parent / "other" / "to_store").symlink_to(linked.parent / "store")
    with pytest.raises(InputError, match=r"to_other/to_store leads back to .*/store, a folder"):
        open_folder(linked)


def test_a_loop_through_a_folder_above_is_refused(linked: Path) -> None:
    (linked / "up").symlink_to(linked.parent)
    with pytest.raises(InputError, match=r"photos/up leads back to "):
        open_folder(linked)


def test_a_link_to_itself_is_refused(linked: Path) -> None:
    (linked / "dog" / "self").symlink_to("self")
    with pytest.raises(InputError, match=r"dog/self cannot be listed: Too many levels of symbolic links"):
        open_folder(linked)


def test_a_class_folder_whose_link_leads_nowhere_is_refused(linked: Path) -> None:
    (linked / "bird").symlink_to("/mnt/gone/bird")
    with pytest.raises(InputError, match=r"photos/bird is a link to /mnt/gone/bird, which does not exist"):
        open_folder(linked)


def test_a_file_whose_link_leads_nowhere_is_an_unreadable_image(linked: Path) -> None:
    (linked / "dog" / "gone.png").symlink_to("/mnt/gone.png")
    config, unreadable = load({"source": "folder", "path": str(linked)}), list[str]()
    assert len(read(config, unreadable=unreadable)["image_id"]) == 10
    assert [name.split(" ")[0] for name in unreadable] == [f"{linked}/dog/gone.png"]


def test_class_folders_without_an_image_are_named(linked: Path) -> None:
    (linked / "empty").mkdir()
    (linked / "texts").mkdir()
    (linked / "texts" / "a.txt").write_text("text")
    assert open_folder(linked).note == (
        f"{linked}: left out files that are no images: 1 .txt; class folders without an image: 'empty', "
        "'texts'"
    )


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EACCES, InputError, "permission denied"),
        (errno.EIO, ReadError, "input/output error"),
        (errno.ESTALE, ReadError, "stale file handle"),
    ],
)
def test_a_folder_that_cannot_be_listed_is_an_error(
    linked: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: Any, words: str
) -> None:
    attempts, scan = [], os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("/dog"):
            attempts.append(path)
            raise OSError(number, os.strerror(number), path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(read_errors.time, "sleep", lambda seconds: None)
    with pytest.raises(kind, match=f"photos/dog cannot be read.*{words}"):
        open_folder(linked)
    assert len(attempts) == 3


def test_a_folder_at_a_uri_that_cannot_be_listed_is_an_error(
    linked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default, fsspec leaves such folders out without a word."""
    from fsspec.implementations.memory import MemoryFileSystem

    list_folder, folder = MemoryFileSystem.ls, to_path("memory://photos")
    names = ["cat/a.png", "dog/b.png", "dog/in/c.png", "dog/@eaDir/d.png", "dog/@eaDir/e.png", "._a.png"]
    for name in names:
        folder.fs.pipe_file(f"/photos/{name}", b"")
    assert list_files(folder) == sorted(names, key=lambda name: name.replace("/", "\0"))
    for protocols in (file_names.OBJECT_STORES, set()):  # then, its folders are listed one by one
        monkeypatch.setattr(file_names, "OBJECT_STORES", protocols)
        hidden = HiddenFiles()
        assert list_files(folder, leave_out=hidden) == ["cat/a.png", "dog/b.png", "dog/in/c.png"]
        assert hidden.note == "left out hidden files and folders: 1 ._*, 1 @eaDir"

    def refuse(self: Any, path: str, **keywords: Any) -> Any:
        if path.endswith("/dog"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return list_folder(self, path, **keywords)

    monkeypatch.setattr(MemoryFileSystem, "ls", refuse)
    monkeypatch.setattr(read_errors.time, "sleep", lambda seconds: None)
    with pytest.raises(InputError, match="permission denied"):
        list_files(folder)


@pytest.mark.parametrize(("maker", "suffix"), [(make_parquet, "parquet"), (make_shards, "tar")])
def test_hidden_tables_and_shards_are_left_out_and_counted(pictures: Any, maker: Any, suffix: str) -> None:
    tree = maker(pictures)
    folder = Path(tree["path"]) if suffix == "tar" else Path(tree["path"]).parent
    (folder / f"._rows.{suffix}").write_bytes(b"\x00\x05\x16\x07 what macOS stores beside a file")
    source = open_source(load(tree, path=str(folder)))
    assert source.num_images == len(pictures.contents)
    assert source.note == f"{folder}: left out hidden files and folders: 1 ._*"


def test_a_disk_that_fails_is_no_unreadable_image(linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (linked / "dog" / "g.png").symlink_to("/proc/self/mem")  # opens, and fails with EIO when read
    monkeypatch.setattr(read_errors.time, "sleep", lambda seconds: None)
    config = load({"source": "folder", "path": str(linked)}, max_unreadable=99)
    with pytest.raises(ReadError, match=r"dog/g\.png cannot be read, after 3 attempts"):
        read(config, unreadable=[])


def test_a_disk_that_fails_under_torchvision_is_no_unreadable_image(
    pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(pictures)
    monkeypatch.setattr(read_errors.time, "sleep", lambda seconds: None)
    tree = {"source": "torchvision", "dataset": "ImageFolder", "root": str(pictures.folder)}
    (pictures.folder / "cat" / "zz.png").symlink_to("/proc/self/mem")
    with pytest.raises(ReadError, match=r"^ImageFolder\[4\] cannot be read, after 3 attempts"):
        read(load(tree), unreadable=[])


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
def test_a_table_that_the_machine_cannot_read_is_not_called_damaged(
    pictures: Any, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    tree, attempts, open_table = make_parquet(pictures), [], pq.ParquetFile
    source = open_source(load(tree))

    def refuse(*arguments: Any, **keywords: Any) -> Any:
        attempts.append(arguments)
        if len(attempts) % 4 != 3:
            raise OSError(number, os.strerror(number))
        return open_table(*arguments, **keywords)

    monkeypatch.setattr(read_errors.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(pq, "ParquetFile", refuse)
    ids = np.arange(source.num_images)
    (first,) = read_chunk(load(tree), source.read, source.chunks[0], ids, None, pytest.fail)
    assert first["image_id"].tolist() == [0, 1, 2, 3, 4]  # at the third attempt
    monkeypatch.setattr(pq, "ParquetFile", lambda *a, **k: refuse_always(number))
    with pytest.raises((ReadError, InputError), match="cannot be read") as error:
        list(read_chunk(load(tree), source.read, source.chunks[0], ids, None, pytest.fail))
    assert isinstance(error.value, InputError) == (number == errno.EACCES)
    with pytest.raises((ReadError, InputError), match="cannot be read") as error:
        open_source(load(tree))
    assert "not a Parquet file" not in str(error.value)


def refuse_always(number: int) -> Any:
    raise OSError(number, os.strerror(number))


def test_rows_without_bytes_are_read_from_their_path_and_others_are_not(pictures: Any) -> None:
    """As Hugging Face stores images: the bytes, or nothing but where the file is."""
    folder, first = pictures.folder, pictures.contents[0]
    cells = [
        {"bytes": None, "path": str(folder / pictures.names[1])},
        {"bytes": None, "path": pictures.names[2]},
        {"bytes": first, "path": pictures.names[3]},
        {"bytes": first, "path": "gone.png"},
        {"bytes": None, "path": "gone.png"},
        {"bytes": None, "path": None},
    ]
    pq.write_table(pa.table({"image": cells}), folder / "rows.parquet")
    config, unreadable = load({"source": "parquet", "path": str(folder / "rows.parquet")}), list[str]()
    columns = read(config, unreadable=unreadable)
    assert columns["image_id"].tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(columns["image"], pictures.pixels()[[1, 2, 0, 0]])
    assert [name.split(" (")[0][-28:] for name in unreadable] == [
        "s.parquet, row 4 of row group 0"[-28:],
        "s.parquet, row 5 of row group 0"[-28:],
    ]


def test_a_row_whose_file_the_machine_cannot_read_is_no_unreadable_image(
    pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_errors.time, "sleep", lambda seconds: None)
    cells = [{"bytes": None, "path": "/proc/self/mem"}]
    pq.write_table(pa.table({"image": cells}), pictures.folder / "rows.parquet")
    config = load({"source": "parquet", "path": str(pictures.folder / "rows.parquet")}, max_unreadable=9)
    with pytest.raises(ReadError, match="/proc/self/mem cannot be read"):
        read(config, unreadable=[])


def test_a_column_of_paths_is_a_list_and_a_column_of_images_is_none(pictures: Any) -> None:
    path = pictures.folder / "rows.parquet"
    pq.write_table(pa.table({"image": pictures.names}), path)
    with pytest.raises(
        InputError, match=r"holds text, not images; .* source to list, and path_column to image"
    ):
        open_source(load({"source": "parquet", "path": str(path)}))
    source = open_source(load({"source": "list", "path": str(path), "path_column": "image"}))
    assert source.num_images == len(pictures.names)
    pq.write_table(pa.table({"image": [{"bytes": b"", "path": name} for name in pictures.names]}), path)
    with pytest.raises(
        InputError, match=r"holds images, not paths; set source to parquet, and image_column to"
    ):
        open_source(load({"source": "list", "path": str(path), "path_column": "image"}))


@pytest.mark.parametrize("maker", [make_list, make_shards])
def test_a_list_or_shard_that_the_machine_cannot_read_is_named(
    pictures: Any, monkeypatch: pytest.MonkeyPatch, maker: Any
) -> None:
    tree, attempts = maker(pictures), []

    def refuse(path: Path, *arguments: Any, **keywords: Any) -> Any:
        attempts.append(path)
        return refuse_always(errno.ESTALE)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(read_errors.time, "sleep", lambda seconds: None)
    with pytest.raises(ReadError, match=r"\.(csv|tar) cannot be read, after 3 attempts: .*stale file handle"):
        open_source(load(tree))
    assert len({*attempts}) == 1
    assert len(attempts) == 3


def test_a_damaged_first_image_of_torchvision_is_an_unreadable_image(pictures: Any) -> None:
    (pictures.folder / pictures.names[0]).write_bytes(b"no image")
    unreadable: list[str] = []
    tree = {"source": "torchvision", "dataset": "ImageFolder", "root": str(pictures.folder)}
    assert read(load(tree), unreadable=unreadable)["image_id"].tolist() == [*range(1, 12)]
    assert unreadable[0].startswith("ImageFolder[0]: cannot identify image file")
