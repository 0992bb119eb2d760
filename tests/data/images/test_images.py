"""The data module for images: file formats, the cache of decoded images, and messages."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

import processes
import proj
from conftest import Cli
from proj.data.arrays import ArrayDataModule
from proj.data.images import decode as decoding
from proj.data.images.augment import augment, random_erase, random_hflip, random_shift
from proj.data.images.datamodule import Images
from proj.errors import UserError

RNG = np.random.default_rng(0)


def make_image(value: int, size: tuple[int, int] = (12, 10), mode: str = "L") -> Image.Image:
    """Return an image [height, width] of noise around ``value``."""
    noise = np.random.default_rng(value).integers(-20, 20, size=(*size, 3))
    image = Image.fromarray((value + noise).clip(0, 255).astype(np.uint8))
    return image.convert(mode)


def folder(root: str = "pets", rows: int = 20, classes: str = "cat dog", **options: Any) -> Path:
    for c, label in enumerate(classes.split()):
        (Path(root) / label).mkdir(parents=True, exist_ok=True)
        for i in range(rows):
            make_image(60 + 120 * c + i, **options).save(Path(root) / label / f"{i:02}.png")
    return Path(root)


def ready(path: Any = "pets", stage: str = "fit", **options: Any) -> Images:
    data = Images(str(path), **{"batch_size": 8, **options})
    data.prepare_data()
    data.setup(stage)
    return data


def pixels_by_file(data: Images) -> dict[str, torch.Tensor]:
    """Return the pixels of each file, by name."""
    return {
        data.files[s][r]: x
        for s in ("train", "val", "test")
        for r, x in zip(data.splits[s].row, data.splits[s].x, strict=True)
    }


# Files and folders


def test_a_folder_of_classes_becomes_pixels_labels_and_rows() -> None:
    """Pixels, labels and file names must stay aligned."""
    data = ready(folder())
    schema = data.schema
    assert schema is not None
    assert (schema.task, schema.classes, schema.input_shape, schema.input_type) == (
        "binary",
        ("cat", "dog"),
        (1, 12, 10),
        "uint8",
    )
    assert [data.rows(s) for s in ("train", "val", "test")] == [28, 6, 6]
    for split in data.splits.values():
        for x, y, row in zip(split.x, split.y, split.row, strict=True):
            file = Path("pets", data.files["train"][row])
            assert file.parent.name == schema.classes[y]
            assert np.array_equal(x[0], np.asarray(Image.open(file)))
    assert sorted(pixels_by_file(data)) == sorted(
        f"{c}/{i:02}.png" for c in ("cat", "dog") for i in range(20)
    )


def test_the_split_is_stratified_and_seeded() -> None:
    """Runs with equal split seeds must have equal test rows."""
    data, same, other = ready(folder()), ready(), ready(split_seed=1)
    assert torch.equal(data.splits["test"].row, same.splits["test"].row)
    assert not torch.equal(data.splits["test"].row, other.splits["test"].row)
    assert data.splits["test"].y.sum() == 3


def test_splits_may_be_empty() -> None:
    """All images can be used for training."""
    data = ready(folder(), val_fraction=0, test_fraction=0)
    assert [data.rows(s) for s in ("train", "val", "test")] == [40, 0, 0]


def test_split_folders_are_used_and_missing_ones_are_taken_off_train() -> None:
    """Images of a test folder must not be trained on."""
    folder("set/train")
    folder("set/test", rows=3)
    (Path("set/test/cat/inner")).mkdir()
    make_image(0).save("set/test/cat/inner/deep.png")
    data = ready("set", val_fraction=0.25)
    assert [data.rows(s) for s in ("train", "val", "test")] == [30, 10, 7]
    assert [data.files["test"][r].split("/")[0] for r in data.splits["test"].row] == ["test"] * 7
    assert "test/cat/inner/deep.png" in pixels_by_file(data)
    folder("set/val", rows=2)
    assert [ready("set").rows(s) for s in ("train", "val", "test")] == [40, 4, 7]


def save_every_kind(root: Path) -> dict[str, np.ndarray]:
    """Save an image in many formats and modes. Returns the expected RGB pixels of each file."""
    image = make_image(100, mode="RGB")
    rgb, grey = np.asarray(image), image.convert("L")
    expected = {}

    def save(name: str, what: Image.Image, pixels: np.ndarray, **options: Any) -> None:
        what.save(root / name, **options)
        expected[name] = pixels

    save("rgb.png", image, rgb)
    save("upper.PNG", image, rgb)
    save("rgb.jpg", image, rgb, quality=100, subsampling=0)
    save("turned.png", image.transpose(Image.Transpose.ROTATE_90), rgb, exif=exif(6))
    save("cmyk.tif", image.convert("CMYK"), rgb)
    save("grey.png", grey, np.asarray(grey.convert("RGB")))
    save("bit.png", grey.convert("1"), np.asarray(grey.convert("1").convert("RGB")))
    save(
        "sixteen.png",
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
        np.asarray(grey.convert("RGB")),
    )
    palette = image.quantize(16)
    save("palette.png", palette, np.asarray(palette.convert("RGB")))
    save("palette.gif", palette, np.asarray(palette.convert("RGB")))
    alpha = np.zeros(rgb.shape[:2], np.uint8)
    alpha[:6] = 255
    clear = Image.fromarray(np.dstack([rgb, alpha]))
    save("clear.png", clear, np.where(alpha[..., None] > 0, rgb, 255))
    return expected


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def test_each_file_format_gives_its_pixels() -> None:
    """Modes, orientation and transparency change the pixels."""
    root = folder()
    expected = save_every_kind(root / "cat")
    data = ready(root)
    assert data.schema is not None
    assert data.schema.input_shape == (3, 12, 10)
    decoded = pixels_by_file(data)
    for name, pixels in expected.items():
        error = np.abs(decoded[f"cat/{name}"].numpy().transpose(1, 2, 0).astype(int) - pixels).max()
        assert error <= {"rgb.jpg": 12, "cmyk.tif": 2}.get(name, 0), name


def test_images_are_grey_if_all_are_or_if_set() -> None:
    """One colour image makes the data set RGB."""
    root = folder()
    assert ready(root).schema.input_names == ("grey",)
    assert ready(root, channels="rgb").schema.input_names == ("red", "green", "blue")
    make_image(1, mode="RGB").save(root / "dog/colour.png")
    assert ready(root).schema.input_shape == (3, 12, 10)
    assert ready(root, channels="grey").schema.input_shape == (1, 12, 10)


def test_images_of_several_sizes_need_an_option() -> None:
    """Scaling without being asked would hide a mistake."""
    root = folder()
    make_image(0, size=(30, 20)).save(root / "cat/large.png")
    with pytest.raises(UserError, match=r"got 2 \(40 of 12×10, 1 of 30×20\); set data.size"):
        ready(root)
    assert ready(root, size=16).splits["train"].x.shape[1:] == (1, 16, 16)
    scaled = pixels_by_file(ready(root, size=(6, 5)))["cat/large.png"]
    reference = Image.open(root / "cat/large.png").resize((5, 6), Image.Resampling.BICUBIC)
    assert np.array_equal(scaled[0], np.asarray(reference))


def test_an_npz_file_gives_the_splits_of_the_array_data_module() -> None:
    """Both data modules must agree on splits and statistics."""
    x = RNG.integers(0, 256, size=(40, 9, 8, 3), dtype=np.uint8)
    np.savez("data.npz", x=x, y=np.arange(40) % 3, x_test=x[:5], y_test=np.arange(5) % 3)
    ours, theirs = ready("data.npz"), ArrayDataModule("data.npz")
    theirs.setup("fit")
    for name, split in theirs.splits.items():
        assert all(
            torch.equal(a, b) for a, b in zip(ours.splits[name][:3], split[:3], strict=True)
        ), name
    fitted, reference = ours.schema.to_dict(), theirs.schema.to_dict()
    for name in ("input_mean", "input_std"):
        assert np.allclose(fitted.pop(name), reference.pop(name))
    assert fitted | {"input_names": None} == reference | {"input_names": None}
    assert ready("data.npz", size=4, channels="grey").splits["test"].x.shape == (5, 1, 4, 4)
    assert ours.files["test"] == []


# Statistics, cache, memory


def test_statistics_are_fitted_on_training_images_only() -> None:
    """Other images must not leak into the schema."""
    folder("set/train", mode="RGB")
    folder("set/val", rows=3)
    before = ready("set", test_fraction=0.2)
    x = before.splits["train"].x.numpy() / 255
    assert np.allclose(before.schema.input_mean, x.mean(axis=(0, 2, 3)))
    assert np.allclose(before.schema.input_std, x.std(axis=(0, 2, 3)))
    for name in {
        "set/val/cat/00.png",
        *(f"set/{before.files['test'][r]}" for r in before.splits["test"].row),
    }:
        make_image(255, mode="RGB").save(name)
    after = ready("set", test_fraction=0.2)
    assert after.schema == before.schema
    assert after.fingerprint != before.fingerprint
    assert after.splits["test"].x.float().mean() > before.splits["test"].x.float().mean()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the images that were decoded so far."""
    calls: list[Any] = []
    read_pixels = decoding.read_pixels
    monkeypatch.setattr(
        decoding,
        "read_pixels",
        lambda image, *rest: calls.append(image) or read_pixels(image, *rest),
    )
    return calls


def test_images_are_decoded_once(decoded: list[Any]) -> None:
    """Decoding in each run would take most of its time; changed files are decoded again."""
    first = ready(folder())
    assert len(decoded) == 40
    second = ready()
    pets = Images("pets")
    pets.schema = first.schema
    pets.setup("test")
    assert len(decoded) == 40
    assert second.schema == first.schema
    assert torch.equal(pets.splits["test"].x, first.splits["test"].x)
    make_image(3).save("pets/cat/00.png")
    ready()
    assert len(decoded) == 80
    shutil.move("pets/dog", "pets/wolf")  # the same files and names of files
    assert ready().schema.classes == ("cat", "wolf")


def test_splits_stay_on_disk() -> None:
    """A data set may be larger than the memory."""
    data = ready(folder())
    files = {
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if ".npy" in line
    }
    assert {Path(file).name for file in files} >= {"x_train.npy", "x_val.npy", "x_test.npy"}
    assert data.splits["train"].x.data_ptr() != ready().splits["train"].x.data_ptr()


PREPARE = """
import time
from proj.data.images import Images, decode
read_pixels = decode.read_pixels
decode.read_pixels = lambda *a: (time.sleep(0.05), read_pixels(*a))[1]
if __name__ == "__main__":
    Images("pets").prepare_data()
"""


@pytest.mark.long
def test_a_killed_preparation_is_not_used(decoded: list[Any]) -> None:
    """Half-decoded arrays would be trained on."""
    folder()
    Path("slow.py").write_text(PREPARE)
    process = processes.Process("slow.py")
    deadline = time.monotonic() + 300  # importing torch on a busy machine
    while (
        not (started := list(Path(".cache").glob("*/.*/x_train.npy")))
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    assert started
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    data = ready()
    assert len(decoded) == 40
    assert all(x.float().mean() > 30 for x in pixels_by_file(data).values())  # none is empty


def test_a_given_schema_decides() -> None:
    """With a checkpoint nothing is fitted again, and images get the shape that the net needs."""
    schema = ready(folder()).schema
    folder("new", mode="RGB")
    data = Images("new")
    data.schema = schema
    data.setup("test")
    assert data.schema is schema
    assert data.splits["test"].x.shape[1:] == (1, 12, 10)
    for root, options, message in [
        (
            folder("large", size=(20, 20)),
            {},
            r"expected 12×10 pixels, .* got 20×20; set data.size to \[12, 10\]",
        ),
        (folder("other", classes="cat wolf"), {}, "class 'wolf' has no training rows, but .* rows"),
        (
            folder("new"),
            {"size": 5},
            r"data.size: expected \[12, 10\], as in training, got \[5, 5\]",
        ),
    ]:
        data = Images(str(root), **options)
        data.schema = schema
        with pytest.raises(UserError, match=message):
            data.setup("test")
    data = Images("large", size=(12, 10))
    data.schema = schema
    data.setup("test")
    assert data.splits["test"].x.shape[1:] == (1, 12, 10)


def test_encode_takes_files_images_and_arrays() -> None:
    """`load` accepts all of them, and refuses others with a message."""
    data = ready(folder(mode="RGB"))
    files = [Path("pets", name) for name in data.files["train"][:5]]
    expected = torch.stack([pixels_by_file(data)[name] for name in data.files["train"][:5]])
    arrays = np.stack([np.asarray(Image.open(file)) for file in files])
    assert torch.equal(Images.encode(files, data.schema), expected)
    assert torch.equal(Images.encode([str(file) for file in files], data.schema), expected)
    assert torch.equal(Images.encode([Image.open(file) for file in files], data.schema), expected)
    assert torch.equal(Images.encode(arrays, data.schema), expected)
    assert Images.encode(RNG.integers(0, 256, (2, 50, 40), dtype=np.uint8), data.schema).shape == (
        2,
        3,
        12,
        10,
    )
    for wrong, message in [
        ([], "expected a list of files or of PIL images, or an array of uint8, got list"),
        ([1], "got int"),
        (
            "pets/cat/00.png",
            "expected a list of files or of PIL images, or an array of uint8, got str",
        ),
        (arrays / 255, "got float64 of shape"),
        (
            ["pets/cat/gone.png"],
            r"1 of 1 images cannot be read \(pets/cat/gone.png: .*No such file",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            Images.encode(wrong, data.schema)


# Mistakes


def damage(root: Path) -> None:
    (root / "cat/00.png").write_bytes(b"")
    whole_file = (root / "cat/01.png").read_bytes()
    (root / "cat/01.png").write_bytes(whole_file[: len(whole_file) // 2])
    (root / "dog/02.png").write_text("not an image")


def test_damaged_images_are_an_error_or_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Other images must keep their pixels when damaged ones are left out."""
    root = folder()
    damage(root)
    with pytest.raises(
        UserError,
        match=r"2 of 40 .*cat/00.png: it has 0 bytes, dog/02.png: cannot identify.*skip_unreadable",
    ):
        ready(root)
    with pytest.raises(UserError, match=r"3 of 40 images cannot be read .*cat/01.png: .*truncated"):
        ready(root, size=12, channels="grey")
    assert capsys.readouterr().err == ""
    for _ in range(2):  # The second time, they come from the cache.
        data = ready(root, skip_unreadable=True)
        (finding,) = data.findings
        assert "3 of 40 images cannot be read (cat/00.png: it has 0 bytes, cat/01.png" in str(
            finding
        )
    names = pixels_by_file(data)
    assert len(names) == 37
    for name, x in names.items():
        assert np.array_equal(x[0], np.asarray(Image.open(root / name))), name


def test_other_files_are_left_out_and_reported() -> None:
    """Nothing is dropped silently, apart from hidden files."""
    root = folder()
    for name in (
        "cat/Thumbs.db",
        "cat/notes.txt",
        "dog/a.csv",
        "labels.csv",
        ".hidden",
        "cat/.DS_Store",
    ):
        (root / name).write_text("")
    (root / ".git").mkdir()
    data = ready(root)
    assert [str(finding) for finding in data.findings] == [
        "4 files in pets have no image suffix (labels.csv, cat/Thumbs.db, cat/notes.txt, …): "
        "they are left out; remove them, or rename them to their format."
    ]
    assert len(pixels_by_file(data)) == 40


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def empty_class() -> None:
    (folder() / "fish").mkdir()


def unknown_class() -> None:
    folder("pets/train")
    folder("pets/test", classes="cat dig")


def loose_image() -> None:
    make_image(0).save(folder() / "stray.png")


def without_classes() -> None:
    Path("pets").mkdir()
    make_image(0).save("pets/a.png")


def equal_folders() -> None:
    for label in "ab":
        for name in "xy":
            save(Path(f"pets/{label}/{name}/0.png"), np.zeros((4, 4), np.uint8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: folder("pest"),
            "expected a folder of images or an .npz file, pets does not exist. Did you mean 'pest'",
        ),
        (lambda: Path("pets").mkdir(), "for each of two classes or more in pets, got none"),
        (lambda: folder(classes="cat"), "for each of two classes or more in pets, got only cat"),
        (
            empty_class,
            "expected images in the class folder pets/fish, got none; add some, or remove it",
        ),
        (
            unknown_class,
            r"in train for the class dig of pets/test/dig/00.png, got none.* Did you mean 'dog'",
        ),
        (loose_image, r"got 1 in pets beside its class folders \(stray.png\)"),
        (without_classes, r"got 1 in pets and no class folder \(a.png\)"),
        (
            lambda: folder(classes="train cat dog"),
            "no folders beside train, val and test in pets, got cat, dog; move",
        ),
        (lambda: folder(classes="train vall"), "got vall; .* Did you mean 'val'"),
        (
            lambda: folder(classes="Train training"),
            "expected one folder for train in pets, got Train and training",
        ),
        (equal_folders, "got a, b, which all hold the folders x, y; if those are the classes"),
        (
            lambda: folder(classes="test val"),
            "expected a folder train beside val and test in pets, got none",
        ),
        (lambda: np.savez("pets", x=np.ones((9, 4)), y=np.arange(9)), "Did you mean 'pets.npz'"),
    ],
)
def test_unusable_folders_are_named(make: Callable[[], Any], message: str) -> None:
    """The message says what is expected of the folder."""
    make()
    with pytest.raises(UserError, match=message):
        ready()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "data.size: expected numbers from 1, got"),
        (
            {"crop": 10},
            "data.crop: expected pixels from 0 to 9, less than the size of an image, got 10",
        ),
        ({"erase": 1.5}, "data.erase: expected a probability from 0 to 1"),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, "expected a sum below 1"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    """The message names the option and its range."""
    with pytest.raises(UserError, match=message):
        ready(folder(), **options)


def test_arrays_that_are_not_images_are_refused() -> None:
    """The message names the data module for such arrays."""
    np.savez("data.npz", x=np.ones((9, 4)), y=np.arange(9))
    with pytest.raises(
        UserError, match=r"x_train: expected images, uint8 .* are for ArrayDataModule"
    ):
        ready("data.npz")


# Augmentation, compared with a loop over the images


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_a_shift_is_a_crop_of_the_padded_image(kind: torch.dtype) -> None:
    """Compared with NumPy's reflecting pad, image by image."""
    x = torch.from_numpy(RNG.integers(0, 256, size=(200, 3, 7, 6))).to(kind)
    torch.manual_seed(0)
    out = random_shift(x, 2)
    torch.manual_seed(0)
    down, right = torch.randint(-2, 3, (2, 200, 1))
    for i in range(200):
        padded = np.pad(x[i].numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect")
        h, w = 2 + int(down[i]), 2 + int(right[i])
        assert np.array_equal(out[i], padded[:, h : h + 7, w : w + 6])
    assert out.dtype == kind
    assert {(int(a), int(b)) for a, b in zip(down, right, strict=True)} == {
        (a, b) for a in range(-2, 3) for b in range(-2, 3)
    }


def test_about_half_of_the_images_are_flipped() -> None:
    """Flips are independent of each other."""
    x = torch.from_numpy(RNG.integers(0, 256, size=(400, 1, 5, 4), dtype=np.uint8))
    out = random_hflip(x)
    turned = [torch.equal(out[i], x[i].flip(2)) for i in range(400)]
    assert all(turned[i] or torch.equal(out[i], x[i]) for i in range(400))
    assert 160 < sum(turned) < 240


def test_an_erased_area_is_one_rectangle_of_the_mean_colour() -> None:
    """Sizes cover the range of the paper."""
    x = torch.from_numpy(RNG.integers(0, 100, size=(400, 3, 20, 16), dtype=np.uint8))
    x[..., ::2] += 150  # so that no pixel has the mean
    out = random_erase(x, 0.5)
    changed = (out != x).any(dim=1)
    shares = []
    for i in range(400):
        if rows := changed[i].any(1).nonzero().flatten().tolist():
            columns = changed[i].any(0).nonzero().flatten().tolist()
            assert changed[i][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert changed[i].sum() == len(rows) * len(columns)
            mean = torch.from_numpy(x[i].numpy().mean(axis=(1, 2)).astype(np.uint8))
            assert torch.equal(out[i][:, rows[0], columns[0]], mean)
            shares.append(len(rows) * len(columns) / 320)
    assert 160 < len(shares) < 240
    assert 0.01 < min(shares) < 0.05
    assert 0.25 < max(shares) < 0.36
    assert torch.equal(random_erase(x, 0.0), x)
    assert (random_erase(x, 1.0) != x).flatten(1).any(1).all()


def test_augmentation_differs_per_row_and_repeats_with_the_seed() -> None:
    """A resumed run must see the same augmented images."""
    x = torch.from_numpy(RNG.integers(0, 256, size=(1, 1, 28, 28), dtype=np.uint8)).expand(
        64, 1, 28, 28
    )
    torch.manual_seed(1)
    augmented = augment(x, True, 4, 1.0)
    torch.manual_seed(1)
    assert torch.equal(augment(x, True, 4, 1.0), augmented)
    assert len({row.numpy().tobytes() for row in augmented}) == 64
    assert torch.equal(augment(x, False, 0, 0.0), x)


# Command line


@pytest.fixture
def experiment(work: Path) -> Path:
    config = {
        "seed_everything": 1,
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "log_every_n_steps": 1},
        "model": {
            "class_path": "BinaryClassifier",
            "init_args": {
                "net": {"class_path": "CNN", "init_args": {"width": 4}},
                "optimizer": {"class_path": "Adam", "init_args": {"lr": 0.02}},
            },
        },
        "data": {"class_path": "Images", "init_args": {"path": "pets", "batch_size": 7, "crop": 1}},
    }
    path = work / "experiment.yaml"
    path.write_text(json.dumps(config))
    return path


def test_fit_test_and_predict_on_a_folder(experiment: Path, cli: Cli, decoded: list[Any]) -> None:
    """Predictions name the files, and `load` predicts like `predict`."""
    folder(mode="RGB", rows=30)
    cli("fit", "--config", experiment)
    cli("test")
    assert len(decoded) == 60
    table = pl.read_parquet("lightning_logs/version_0/test/predictions.parquet")
    assert (table["prediction"] == table["target"]).mean() > 0.8
    data = ready(stage="test", crop=1)
    names = [data.files["test"][row] for row in table["row"]]
    assert [name.split("/")[0] for name in names] == table["target"].to_list()

    folder("new/inner", rows=3, mode="RGB")
    make_image(0, mode="RGB").save("new/a.png")
    cli("predict", "--data.predict_path", "new", "--output", "out.csv")
    out = pl.read_csv("out.csv")
    assert out["row"].to_list() == list(range(7))
    assert table["file"].to_list() == names
    files = ["new/a.png", *(f"new/inner/{c}/0{i}.png" for c in ("cat", "dog") for i in range(3))]
    loaded = proj.load("version_0").predict(files)
    assert [f"new/{name}" for name in out["file"]] == files
    assert loaded["prediction"].to_list() == out["prediction"].to_list()
    assert np.allclose(loaded["probability_dog"], out["probability_dog"], atol=1e-5)


def test_predict_needs_the_new_images_only(experiment: Path, cli: Cli) -> None:
    """The training images may have been deleted."""
    cli(
        "fit",
        "--config",
        experiment,
        "--data.path",
        folder(size=(20, 20)),
        "--data.size",
        "[12, 10]",
    )
    shutil.rmtree("pets")
    folder("new", rows=2)
    cli("predict", "--data.predict_path", "new")
    assert "got none in empty" in predict_error(cli, "empty")
    assert "nwe does not exist. Did you mean 'new'" in predict_error(cli, "nwe")
    np.savez("new.npz", x=np.zeros((3, 12, 10), np.uint8))
    cli("predict", "--data.predict_path", "new.npz")
    assert len(pl.read_parquet("lightning_logs/version_0/predict/predictions.parquet")) == 3


def predict_error(cli: Cli, path: str) -> str:
    Path("empty").mkdir(exist_ok=True)
    return cli("predict", "--data.predict_path", path, code=2)


def test_images_are_augmented_in_training_only(
    experiment: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Augmented test images would give random metrics."""
    seen: list[bool] = []
    monkeypatch.setattr(
        "proj.data.images.datamodule.augment", lambda x, **options: seen.append(len(x) == 7) or x
    )
    folder()
    cli("fit", "--config", experiment, "--model.steps_per_execution", "2")
    cli("test")
    assert len(seen) == 1 + 3 * 4  # a batch of the preflight, and 28 rows by 7 in three epochs
    assert all(seen)


def test_init_writes_an_experiment_for_images(cli: Cli) -> None:
    """The size, the flip and the class shares fit the images."""
    folder(rows=15)
    assert "rows: 22 train, 4 val, 4 test" in cli("init", "pets")
    text = Path("configs/pets.yaml").read_text()
    assert "size: null # all images have one size" in text
    assert "flip: true" in text
    quick = ["--trainer.max_epochs", "1", "--model.net.width", "4", "--trainer.accelerator", "cpu"]
    cli("fit", "--config", "configs/pets.yaml", *quick)
    for i, path in enumerate(sorted(Path("pets").rglob("*.png"))):
        make_image(90, size=(70 + i, 80)).save(path)
    cli("init", "pets", "--output", "large.yaml")
    assert (
        "size: 64 # height and width that all images are scaled to"
        in Path("large.yaml").read_text()
    )
    np.savez("letters.npz", x=np.zeros((60, 9, 9), np.uint8), y=np.arange(60) % 3)
    cli("init", "letters.npz")
    assert (
        "MulticlassClassifier # 0 33.3%, 1 33.3%, 2 33.3%"
        in Path("configs/letters.yaml").read_text()
    )
    assert "--target, --task: expected neither for images" in cli(
        "init", "pets", "--target", "y", "--force", code=2
    )


@pytest.mark.parametrize("words", [("Train", "Test", "Valid"), ("training", "testing", "val")])
def test_folders_of_splits_as_publishers_write_them(words: tuple[str, ...]) -> None:
    """The splits would be taken for classes."""
    for number, word in enumerate(words):
        for label in ("cat", "dog"):
            for i in range(4):
                pixels = np.full((4, 4), 50 * number + i, np.uint8)
                save(Path(f"pets/{word}/{label}/{i}.png"), pixels)
    data = Images("pets")
    data.prepare_data()
    data.setup("fit")
    assert data.schema.classes == ("cat", "dog")
    assert [len(data.splits[name].row) for name in ("train", "test", "val")] == [8, 8, 8]


@pytest.mark.parametrize(("largest", "levels"), [(4000, 16), (65535, 256)])
def test_the_lost_levels_of_16_bits_are_a_finding(largest: int, levels: int) -> None:
    """Pictures of 12 bits in files of 16 bits would keep 16 levels without a word."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        for i in range(8):
            pixels = rng.integers(0, largest, (8, 8)).astype(np.uint16)
            pixels[0, 0] = largest
            save(Path(f"pets/{label}/{i}.png"), pixels)
    data = Images("pets")
    data.prepare_data()
    data.setup("fit")
    (finding,) = (f for f in data.findings if "16 bits" in f.what)
    assert finding.what == f"16 of 16 images looked at have 16 bits, with values up to {largest:,}"
    assert f"{levels} of 256 grey levels" in finding.effect
