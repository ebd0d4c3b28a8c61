"""Images left out by a list, as ``suspects.csv`` is one."""

import numpy as np
import pytest

from jaxpoison import Dataset, Splits, without_listed


def part(name, ids):
    images = np.arange(len(ids), dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 4, 4, 3), np.uint8
    )
    labels = np.arange(len(ids)) % 2
    poisoned = np.arange(len(ids)) == 1
    return Dataset(images, labels, ("a", "b"), tuple(ids), poisoned)


@pytest.fixture
def splits():
    return Splits(
        part("train", ["0", "1", "2", 'x,"y"\n', "caf\udce9"]),
        part("validation", ["0", "v"]),
        part("test", ["0", "1"]),
    )


def listed(tmp_path, text):
    path = tmp_path / "list.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def left(splits):
    return splits.train.ids, splits.validation.ids, splits.test.ids


def test_a_part_is_left_alone_if_the_list_names_another(splits, tmp_path):
    path = listed(tmp_path, "part,id,label\ntrain,0,0\nvalidation,v,1\n")
    found = without_listed(splits, path)
    assert left(found) == (splits.train.ids[1:], ("0",), ("0", "1"))
    np.testing.assert_array_equal(found.train.images, splits.train.images[1:])
    np.testing.assert_array_equal(found.train.poisoned, splits.train.poisoned[1:])


@pytest.mark.parametrize(
    "text",
    [
        "id\n0\n",
        "\ufeffid\r\n0\r\n",
        "label,id\n7,0\n",
    ],
)
def test_without_parts_all_images_are_looked_through(splits, tmp_path, text):
    found = without_listed(splits, listed(tmp_path, text))
    assert left(found) == (splits.train.ids[1:], ("v",), ("1",))


def test_any_name_may_be_listed(splits, tmp_path):
    path = listed(tmp_path, 'id\n"x,""y""\n"\ncaf\udce9\n')
    assert without_listed(splits, path).train.ids == ("0", "1", "2")


def test_an_image_that_another_seed_held_out_is_found_where_it_is(splits, tmp_path):
    found = without_listed(splits, listed(tmp_path, "part,id\ntrain,v\ntest,2\n"))
    assert left(found) == (("0", "1", 'x,"y"\n', "caf\udce9"), ("0",), ("0", "1"))


def test_all_images_of_a_name_are_left_out(tmp_path):
    twice = Splits(part("train", ["a", "a", "b"]), part("validation", ["v"]), part("test", ["t"]))
    assert without_listed(twice, listed(tmp_path, "id\na\n")).train.ids == ("b",)


def test_an_empty_list_leaves_everything(splits, tmp_path):
    found = without_listed(splits, listed(tmp_path, "part,id,label\n"))
    assert left(found) == left(splits)
    assert found.fingerprint == splits.fingerprint


def test_names_that_no_image_has_are_said(splits, tmp_path):
    path = listed(tmp_path, "part,id\ntrain,0\ntrain,gone\nvalidation,1\n")
    with pytest.warns(UserWarning, match="2 of 3 names in .* are of no image: gone, 1"):
        found = without_listed(splits, path)
    assert found.train.ids == splits.train.ids[1:]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name\n0\n", "must have a column id with names of images, found name"),
        ("", "must have a column id .* found no columns"),
        ("id,part\n0,all\n", "row 2 of .* as part train, validation, test, found 'all' and '0'"),
        ("part,id\ntrain,\n", "row 2 of .* must name an image"),
        ("id\na\nb\nc\nd\ne\n", "5 of 5 names .*: a, b, c and 2 more; names look like 0 here"),
        ('id\n0\n1\n2\n"x,""y""\n"\ncaf\udce9\n', "names all images of part train"),
        ("part,id\nvalidation,0\nvalidation,v\n", "names all images of part validation"),
        ("id,label,raw_pca_cluster\n0,0,1\n", r"a row for every image, with clusters \(raw_pca_cl"),
        ("id\n" + "0" * 200_000 + "\n", "is no CSV: field larger"),
    ],
)
def test_a_list_that_is_none_is_refused(splits, tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        without_listed(splits, listed(tmp_path, text))


def test_a_list_that_is_not_there_is_said(splits, tmp_path):
    with pytest.raises(FileNotFoundError, match="no list of images to exclude at .*none.csv"):
        without_listed(splits, tmp_path / "none.csv")
