"""Folders as people have them: links, debris, several of them, lists of images."""

from __future__ import annotations

import logging
import os
import socket

import numpy as np
import pytest
from _pictures import as_bytes, color, write_folder

from kdsteps.data.decoding import decode
from kdsteps.data.form import Form
from kdsteps.data.kinds import folder
from kdsteps.data.source import Broken
from kdsteps.errors import KdstepsError


@pytest.fixture
def pets(tmp_path):
    """Two cats and three dogs in a folder of their own."""
    return write_folder(tmp_path / "pets", {"cat": 2, "dog": 3})


def names(root, **options) -> tuple[str, ...]:
    return folder.load(path=str(root), **options).names


PETS = ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "dog/2.png")


# links


@pytest.mark.parametrize("target", [".", "..", "../dog", "../cat"])
def test_a_link_within_the_folder_adds_no_image(pets, target):
    (pets / "cat" / "link").symlink_to(target)
    assert names(pets) == names(pets, follow_links=True) == PETS


def test_a_link_to_an_image_that_is_there_adds_none(pets):
    (pets / "cat" / "again.png").symlink_to("../dog/0.png")
    (pets / "hound").symlink_to("dog")
    assert names(pets) == PETS


def test_a_link_to_a_hidden_folder_inside_counts_once(pets):
    """As git-annex and DataLad store files."""
    store = pets / ".annex"
    store.mkdir()
    (pets / "cat" / "1.png").rename(store / "key")
    (pets / "cat" / "1.png").symlink_to("../.annex/key")
    (pets / "cat" / "2.png").symlink_to("../.annex/key")
    assert names(pets) == PETS


@pytest.mark.parametrize("target", ["image", "folder", "class", "above"])
def test_a_link_out_of_the_folder_is_refused_unless_wanted(tmp_path, pets, target):
    outside = write_folder(tmp_path / "outside", {"bird": 2}, start=50)
    link, to, found = {
        "image": (pets / "cat" / "x.png", outside / "bird" / "0.png", 1),
        "folder": (pets / "cat" / "more", outside / "bird", 2),
        "class": (pets / "bird", outside / "bird", 2),
        "above": (pets / "cat" / "up", tmp_path, 2),
    }[target]
    link.symlink_to(to)
    with pytest.raises(KdstepsError, match=rf"{link}: .*{to}.*follow_links: true"):
        names(pets)
    assert len(names(pets, follow_links=True)) == len(PETS) + found


def test_circles_of_links_outside_end(tmp_path, pets):
    outside = write_folder(tmp_path / "outside", {"bird": 2}, start=50)
    (outside / "bird" / "round").symlink_to(outside)
    (pets / "bird").symlink_to(outside)
    assert len(names(pets, follow_links=True)) == len(PETS) + 2


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(pets):
    (pets / "cat" / "gone.png").symlink_to("nothing.png")
    assert "cat/gone.png" in names(pets)
    assert decode(pets / "cat" / "gone.png", Form(3)) == Broken("does not exist")


def test_the_folder_itself_may_be_a_link(tmp_path, pets):
    (tmp_path / "link").symlink_to(pets)
    assert names(tmp_path / "link") == PETS


def test_a_home_folder_is_found(tmp_path, pets, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names("~/pets") == PETS


# what is no image


def test_pipes_and_sockets_are_passed_over_and_named(pets, caplog, monkeypatch):
    os.mkfifo(pets / "cat" / "pipe.png")
    monkeypatch.chdir(pets / "cat")  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as listener, caplog.at_level(logging.WARNING):
        listener.bind("socket.png")
        assert names(pets) == PETS
    assert "2 named pipes, sockets or devices" in caplog.text
    assert "pipe.png" in caplog.text


@pytest.mark.parametrize("path", ["/dev/zero", "pipe", "."])
def test_what_is_no_file_is_never_read(tmp_path, path):
    os.mkfifo(tmp_path / "pipe")
    assert decode(tmp_path / path, Form(3)) == Broken("is not a regular file")


def test_debris_of_macos_and_windows_is_ignored(pets):
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.png"):
        (pets / "cat" / name).write_bytes(b"debris")
    for name in ("__MACOSX/cat", "cat/__MACOSX", "cat/.ipynb_checkpoints", "cat/@eaDir", ".git"):
        (pets / name).mkdir(parents=True)
        (pets / name / "0.png").write_bytes(b"debris")
    assert names(pets) == PETS


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(pets):
    (pets / "cat").chmod(0)
    with pytest.raises(KdstepsError, match=r"cat: the folder cannot be read"):
        names(pets)


def test_names_that_are_not_utf8_are_read(pets):
    raw = os.fsencode(pets / "cat") + b"/caf\xe9.png"
    with open(raw, "wb") as file:
        file.write(as_bytes(color(9)))
    source = folder.load(path=str(pets))
    assert len(source.names) == len(PETS) + 1


# several folders, and lists


def test_several_folders_join_their_classes(tmp_path, pets):
    other = write_folder(tmp_path / "other", {"dog": 1, "fish": 1}, start=90)
    source = folder.load(path=(str(pets), str(other)))
    assert source.class_names == ("cat", "dog", "fish")
    assert source.labels.tolist() == [0, 0, 1, 1, 1, 1, 2]
    assert source.names[-1] == f"{other}/fish/0.png"


def test_a_split_may_be_several_folders(tmp_path):
    for start, name in enumerate(("train", "extra", "val")):
        write_folder(tmp_path / name, {"a": 1, "b": 1}, start=10 * start)
    source = folder.load(path=str(tmp_path), train=("train", "extra"), test="val")
    assert source.split.tolist() == ["train"] * 4 + ["test"] * 2
    assert source.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_lists_of_images_fix_the_split(pets):
    (pets / "held-out.txt").write_text("dog/1.png\ncat/0\n\n")
    source = folder.load(path=str(pets), test="held-out.txt")
    found = dict(zip(source.names, source.split.tolist(), strict=True))
    assert [name for name, split in found.items() if split == "test"] == ["cat/0.png", "dog/1.png"]
    assert sum(split == "train" for split in found.values()) == 3
    (pets / "train.txt").write_text("./dog/0.png\ncat/1.png\n")
    listed = folder.load(path=str(pets), train="train.txt", test="held-out.txt")
    assert listed.split.tolist() == ["train"] * 2 + ["test"] * 2
    assert np.array_equal(listed.labels, [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog/7.png", "line 1 names no image, 'dog/7.png'; did you mean"),
        ("dog/0\ndog/0.png", "line 2 names an image that is already in test"),
        ("dog/2", "line 1 names 'dog/2', which 2 images are called"),
    ],
)
def test_a_list_that_does_not_match_the_folder_is_refused(pets, text, message):
    color(77).save(pets / "dog" / "2.bmp")
    (pets / "test.txt").write_text(text)
    with pytest.raises(KdstepsError, match=message):
        folder.load(path=str(pets), test="test.txt")


def test_a_list_that_does_not_exist_is_the_one_that_is_named(pets):
    with pytest.raises(KdstepsError, match=r"datasets: test: .*/held-out.txt does not exist; name"):
        folder.load(path=str(pets), test="held-out.txt")


def test_lists_and_folders_are_not_mixed(tmp_path):
    write_folder(tmp_path / "train", {"a": 1, "b": 1})
    (tmp_path / "test.txt").write_text("a/0.png")
    with pytest.raises(KdstepsError, match="test is a list of images and train is not"):
        folder.load(path=str(tmp_path), train="train", test="test.txt")
