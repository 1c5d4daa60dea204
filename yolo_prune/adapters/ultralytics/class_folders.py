"""Where the data of a classifier is: a folder of folders of images, found as the host finds it."""

from __future__ import annotations

from pathlib import Path

from yolo_prune.accuracy.classes import class_split
from yolo_prune.errors import DataError


def find_class_folders(data: str | Path, split: str) -> Path:
    """Find a classification data set, here or in the host's ``datasets_dir``; nothing is downloaded or split.

    Args:
        data: A folder with ``train`` and the split, each with one folder of images per class.
        split: ``train``, ``val`` or ``test``.

    Returns:
        The absolute path of the folder.

    Raises:
        DataError: The folder, ``train``, the split or its images are missing.
    """
    from ultralytics.data.utils import IMG_FORMATS
    from ultralytics.utils import DATASETS_DIR

    folder = next((each for each in (Path(data), Path(DATASETS_DIR) / data) if each.is_dir()), None)
    if folder is None:
        raise DataError(
            f"the folder {data} does not exist; a classifier's data is a folder of folders of images."
        )
    part = class_split(folder, split)
    if not any(path.suffix[1:].lower() in IMG_FORMATS for path in part.rglob("*.*")):
        raise DataError(f"no images in {part}.")
    return folder.resolve()
