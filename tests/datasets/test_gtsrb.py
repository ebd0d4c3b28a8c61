import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxpoison.datasets.gtsrb import ARCHIVES, holds_gtsrb, load_gtsrb

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
HEADER = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
TRACKS, FRAMES, TESTS = 3, 2, 6


def frame(rng):
    h, w = rng.integers(20, 60, 2)
    # A dark rim around a bright sign, so that a crop can be told from the frame.
    pixels = rng.integers(0, 40, (h, w, 3)).astype(np.uint8)
    pixels[5 : h - 5, 5 : w - 5] += 200
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "ppm")
    return data.getvalue(), f"{w};{h};5;5;{w - 5};{h - 5}"


def official_files():
    rng = np.random.default_rng(0)
    files = {name: {} for name in ARCHIVES}
    train, test, labels = files.values()
    for k in range(43):
        table = HEADER
        for t in range(TRACKS):
            for f in range(FRAMES):
                data, box = frame(rng)
                train[f"GTSRB/Final_Training/Images/{k:05d}/{t:05d}_{f:05d}.ppm"] = data
                table += f"{t:05d}_{f:05d}.ppm;{box};{k}\n"
        train[f"GTSRB/Final_Training/Images/{k:05d}/GT-{k:05d}.csv"] = table.encode()
    table = HEADER
    for i in range(TESTS):
        data, box = frame(rng)
        test[f"GTSRB/Final_Test/Images/{i:05d}.ppm"] = data
        table += f"{i:05d}.ppm;{box};{i}\n"
    labels["GT-final_test.csv"] = table.encode()
    return files


def write_archives(path, files):
    path.mkdir()
    for name, members in files.items():
        with zipfile.ZipFile(path / name, "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)
    return path


@pytest.fixture
def archives(tmp_path):
    return write_archives(tmp_path / "archives", official_files())


def test_reads_archives_like_pillow_does(archives):
    splits = load_gtsrb(archives, verify=False)
    assert len(splits.train) + len(splits.validation) == 43 * TRACKS * FRAMES
    assert splits.test.labels.tolist() == list(range(TESTS))
    assert splits.train.num_classes == 43
    with zipfile.ZipFile(archives / "GTSRB_Final_Training_Images.zip") as archive:
        for i in (0, 50, 100):
            image = Image.open(io.BytesIO(archive.read("GTSRB/" + splits.train.ids[i])))
            resized = image.resize((32, 32), Image.Resampling.BILINEAR)
            assert (np.asarray(resized) == splits.train.images[i]).all()
            assert int(splits.train.ids[i].split("/")[2]) == splits.train.labels[i]


def test_validation_holds_out_whole_tracks_by_seed(archives):
    def tracks(part):
        return {i.rsplit("_", 1)[0] for i in part.ids}

    splits = load_gtsrb(archives, verify=False)
    assert not tracks(splits.train) & tracks(splits.validation)
    assert len(tracks(splits.validation)) == 43
    other = load_gtsrb(archives, verify=False, seed=1)
    assert tracks(other.validation) != tracks(splits.validation)


def test_crop_leaves_the_rim_out(archives):
    whole = load_gtsrb(archives, verify=False).test.images
    cropped = load_gtsrb(archives, verify=False, crop=True).test.images
    assert whole[:, 0, 0].max() < 100
    assert cropped[:, 0, 0].min() > 150


def test_extracted_tree_gives_the_same(archives, tmp_path):
    tree = tmp_path / "tree"
    for name in ARCHIVES:
        zipfile.ZipFile(archives / name).extractall(tree)
    assert holds_gtsrb(tree)
    assert load_gtsrb(tree).fingerprint == load_gtsrb(archives, verify=False).fingerprint


@pytest.mark.parametrize("change", ["relabelled", "another image", "one image less"])
def test_a_tree_that_changed_is_read_again(change, archives, tmp_path):
    tree = tmp_path / "tree"
    for name in ARCHIVES:
        zipfile.ZipFile(archives / name).extractall(tree)
    before = load_gtsrb(tree)
    folder = tree / "GTSRB/Final_Training/Images/00000"
    table = folder / "GT-00000.csv"
    if change == "relabelled":
        lines = table.read_text().splitlines()
        table.write_text("\n".join([*lines[:-1], lines[-1].rsplit(";", 1)[0] + ";7"]) + "\n")
    elif change == "another image":
        some = sorted(folder.glob("*.ppm"))
        some[0].write_bytes(some[-1].read_bytes())
    else:
        lines = table.read_text().splitlines()
        table.write_text("\n".join(lines[:-1]) + "\n")
    assert load_gtsrb(tree).fingerprint != before.fingerprint


def test_checksum_is_verified(archives):
    with pytest.raises(
        ValueError, match=r"Training_Images\.zip is damaged .* expected MD5 f33fd80"
    ):
        load_gtsrb(archives)


def test_missing_archive_is_named(archives):
    (archives / "GTSRB_Final_Test_GT.zip").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing GTSRB_Final_Test_GT\.zip"):
        load_gtsrb(archives, verify=False)


def test_missing_and_corrupt_files_are_named(tmp_path):
    files = official_files()
    train = files["GTSRB_Final_Training_Images.zip"]
    image = "GTSRB/Final_Training/Images/00007/00001_00000.ppm"
    data = train.pop(image)
    with pytest.raises(FileNotFoundError, match=f"has no file {image}"):
        load_gtsrb(write_archives(tmp_path / "a", files), verify=False)
    train[image] = data[:50]
    with pytest.raises(ValueError, match=f"{image} cannot be read"):
        load_gtsrb(write_archives(tmp_path / "b", files), verify=False)
    train[image] = data
    train["GTSRB/Final_Training/Images/00003/GT-00003.csv"] = HEADER.encode()
    with pytest.raises(ValueError, match="class 3 has no training images"):
        load_gtsrb(write_archives(tmp_path / "c", files), verify=False)
