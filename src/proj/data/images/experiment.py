"""Values of the experiment that `init` writes for images."""

from typing import Any

import numpy as np

from proj.data.images.decode import read_shape, run_parallel
from proj.data.images.sources import ImageSet
from proj.schema import Schema

# A training run sees about 800,000 images, each several times.
IMAGES_PER_RUN = 800_000
MIN_EPOCHS, MAX_EPOCHS = 7, 60

# Shorter runs do not overfit, so random shifts only slow them down.
EPOCHS_FOR_CROP = 12

# CutMix helps in long runs on images from this size; see docs/guides/images.md.
CUTMIX_SIZE = 16

# More validation images of a large data set would be missing in training.
MAX_VAL_IMAGES = 5_000

# Images up to this size are not scaled if all have one size.
MAX_SIZE = 64

# Number of images whose size is read.
SIZE_SAMPLE = 500


def experiment_values(
    path: str, schema: Schema, size: int | None, val_fraction: float
) -> dict[str, Any]:
    """Return the values of ``templates/experiment.yaml.j2``; ``size`` None: images keep theirs."""
    epochs = max(MIN_EPOCHS, min(MAX_EPOCHS, IMAGES_PER_RUN // schema.rows))
    # Classes of one letter are probably letters, which must not be mirrored.
    letters = all(len(name) == 1 for name in schema.class_names)
    return {
        "epochs": epochs,
        "is_short": epochs < EPOCHS_FOR_CROP,
        "crop": min(schema.input_shape[1:]) // 14,
        "cutmix": schema.task != "regression"
        and epochs == MAX_EPOCHS
        and min(schema.input_shape[1:]) >= CUTMIX_SIZE,
        "flip": not letters or path.endswith(".npz"),
        "size": size,
        "batch_size": _batch_size(schema.rows),
        "val_fraction": val_fraction,
    }


def scaled_size(images: ImageSet) -> int | None:
    """Return 32 or 64 pixels by the median size; None if all images are small and equal in size."""
    sample = images.images[:: -(-len(images.images) // SIZE_SAMPLE)]
    sizes = np.zeros((len(sample), 2), np.int64)

    def measure(i: int) -> None:
        sizes[i] = read_shape(sample[i])[1:]

    # `prepare_images` reports unreadable images.
    failures = run_parallel(measure, len(sample), "reading image sizes")
    sizes = np.delete(sizes, list(failures), axis=0)
    if not len(sizes) or ((sizes == sizes[0]).all() and sizes.max() <= MAX_SIZE):
        return None
    return 32 if np.median(sizes.min(axis=1)) < 48 else 64


def val_share(images: ImageSet) -> float:
    """Return the share of the training images for validation."""
    train = int((images.splits == "train").sum())
    return min(0.15, round(MAX_VAL_IMAGES / max(1, train), 3))


def _batch_size(rows: int) -> int:
    sizes = ((64, 8), (500, 32), (2_000, 64))
    return next((size for limit, size in sizes if rows < limit), 128)
