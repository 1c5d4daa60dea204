"""Which files of a data set the host would use: it leaves out an image that is broken or whose labels are.

The host finds out when a training or an evaluation begins, says so in a line of its log for each file, repairs what it
can on the disk, and goes on with the rest. Here the same is known before anything begins, nothing is written, and there
is one list. The rules for labels are the host's own code, those for images follow it.
"""

from __future__ import annotations

import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TypeVar

import numpy as np

from yolo_prune.accuracy.labels import read_yolo_labels
from yolo_prune.errors import DataError, one_line
from yolo_prune.progress import LOGGER, track

_Image = TypeVar("_Image")
_LISTED = 20  # so many bad files are named; of the others there is the number
_SMALLEST = 9  # pixels; an image needs more on both sides
_REMEMBERED = 32  # splits, in this process
_JPEG_END = b"\xff\xd9"


@dataclass(frozen=True)
class LabelRules:
    """What a row of a label file must look like.

    Attributes:
        classes: Number of classes.
        keypoints: Points and numbers for each point; (0, 0) without.
        pose: The points are learnt, so every row needs them.
    """

    classes: int
    keypoints: tuple[int, int] = (0, 0)
    pose: bool = False


@dataclass(frozen=True)
class Usable:
    """The files of a split that the host would use.

    Attributes:
        images: Those images, in the order in which they came.
        problems: What is wrong with each of the others: file and reason.
    """

    images: tuple[Path, ...]
    problems: tuple[str, ...]


_known: OrderedDict[str, Usable] = OrderedDict()
_told: set[tuple[str, ...]] = set()


def usable_images(images: Sequence[Path], rules: LabelRules | None, what: str) -> Usable:
    """Leave out the images that the host would leave out, with one warning that lists them.

    Args:
        images: The images of a split.
        rules: What their labels must look like; a missing file is background. None for images without labels.
        what: The split in words, such as ``'train' in data.yaml``.

    Returns:
        What is left. Files that have not changed since the last call are not read again, nor warned about.

    Raises:
        DataError: Nothing is left.
    """
    labels = label_files_of(images) if rules else []
    key = _fingerprint([*images, *labels], repr(rules))
    if key not in _known:
        found = _examine(images, labels, rules)
        _known[key] = Usable(
            tuple(image for image, problem in zip(images, found, strict=True) if not problem),
            tuple(problem for problem in found if problem),
        )
        while len(_known) > _REMEMBERED:
            _known.popitem(last=False)
        _tell(_known[key].problems, len(images) if _known[key].images else 0, what)
    usable = _known[key]
    if not usable.images:
        raise DataError(left_out(usable.problems, len(images), what))
    return usable


def warn_of_missing(
    images: Sequence[Path], kept: Sequence[Path], rules: LabelRules | None, what: str
) -> None:
    """Warn, in one list, of the images of a split that the host has read and not kept.

    Args:
        images: All of the split.
        kept: Those that the host uses; it may have been asked for a first part only.
        rules: As for :func:`usable_images`.
        what: The split in words.
    """
    known, last = set(kept), max(map(os.fspath, kept))
    missing = [image for image in images if image not in known and os.fspath(image) <= last]
    if not missing:
        return
    problems = [each for each in _examine(missing, label_files_of(missing) if rules else [], rules) if each]
    _tell(tuple(problems), len(images), what)


def _tell(problems: tuple[str, ...], count: int, what: str) -> None:
    """Warn once of the bad files among ``count``; of a split that is all bad there is an error instead."""
    if problems and count and problems not in _told:
        _told.add(problems)
        LOGGER.warning("%s", left_out(problems, count, what))


def label_files_of(images: Sequence[Path]) -> list[Path]:
    """Return the label file of each image, where the host looks for it."""
    from ultralytics.data.utils import img2label_paths

    return [Path(path) for path in img2label_paths([os.fspath(path) for path in images])]


def left_out(problems: Sequence[str], count: int, what: str) -> str:
    """Return the one list of bad files: how many of ``count``, the first of them with what is wrong, and the rest."""
    head = f"{len(problems)} of the {count} images of {what} are left out, as by the host:"
    if len(problems) == count:
        head = f"none of the {count} images of {what} can be used:"
    more = len(problems) - _LISTED
    lines = [head, *problems[:_LISTED], *([f"and {more} more."] if more > 0 else [])]
    return "\n  ".join(lines)


def _fingerprint(files: Iterable[Path], rules: str) -> str:
    """Return a hash of names, sizes and times of files."""
    digest = sha256(rules.encode())
    for file in files:
        digest.update(os.fsencode(file))
        try:
            status = os.stat(file)
        except OSError:
            continue
        digest.update(f"\0{status.st_size}:{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _examine(images: Sequence[Path], labels: Sequence[Path], rules: LabelRules | None) -> list[str]:
    """Return what is wrong with each image or its labels; empty where nothing is."""
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool, tempfile.TemporaryDirectory() as folder:
        pairs = zip(images, labels if rules else [None] * len(images), strict=True)
        judge = partial(_problem_of, rules=rules, stand_in=_blank_image(Path(folder)))
        return list(track(pool.imap(judge, pairs, chunksize=16), "Checking images", total=len(images)))


def _problem_of(pair: tuple[Path, Path | None], rules: LabelRules | None, stand_in: Path) -> str:
    image, label = pair
    problem = image_problem(image)
    if not problem and label is not None and rules is not None:
        problem = label_problem(label, rules, stand_in)
    return problem


def image_problem(path: Path) -> str:
    """Return why the host would leave an image out, empty where it would not; only what must be read is read."""
    from PIL import Image
    from ultralytics.data.utils import IMG_FORMATS, exif_size

    try:
        with Image.open(path) as image:
            kind = (image.format or "").lower()
            image.verify()
            sides = exif_size(image)
        if min(sides) <= _SMALLEST:
            return f"{path}: {sides[0]} x {sides[1]} pixels are too few"
        if kind not in IMG_FORMATS | {"jpeg2000"}:
            return f"{path}: '{kind}' is no known format"
        if kind in ("jpg", "jpeg") and not _ends_well(path):
            with Image.open(path) as image:
                image.load()  # the host saves it anew where that works
    except ImportError:  # the host wants a plug-in for whatever Pillow does not know
        return f"{path}: it is no image that can be opened here"
    # SyntaxError: a broken PNG. The others: whatever a decoder trips over.
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError) as error:
        return f"{path}: {one_line(error).replace(f' {os.fspath(path)!r}', '')}"
    return ""


def _ends_well(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-len(_JPEG_END), os.SEEK_END)
        return file.read() == _JPEG_END


def label_problem(path: Path, rules: LabelRules, stand_in: Path) -> str:
    """Return why the host would leave an image with these labels out; empty where it would not.

    Args:
        path: The label file.
        rules: What its rows must look like.
        stand_in: A good image; the real one is not shown to the host, which might write to it.
    """
    from ultralytics.data.utils import verify_image_label

    points, numbers = rules.keypoints
    arguments = (os.fspath(stand_in), os.fspath(path), "", rules.pose, rules.classes, points, numbers, False)
    image, *_, words = verify_image_label(arguments)
    if image is not None:
        return ""
    try:  # our sentence names the line
        read_yolo_labels(path, rules.classes, points * numbers)
    except DataError as error:
        return str(error).rstrip(".")
    return f"{path}: {' '.join(str(words).partition('corrupt image/label: ')[2].split()) or words}"


def _blank_image(folder: Path) -> Path:
    from PIL import Image

    Image.new("L", (16, 16)).save(folder / "blank.png")
    return folder / "blank.png"


def draw_files(files: Sequence[Path], count: int, seed: int) -> list[Path]:
    """Draw ``count`` files at random without repetition, in their order; all of them where there are fewer."""
    if len(files) <= count:
        return list(files)
    chosen = np.random.default_rng(seed).choice(len(files), size=count, replace=False)
    return [files[index] for index in sorted(chosen)]


def load_drawn(
    files: Sequence[Path], count: int, seed: int, load: Callable[[Path], _Image | None]
) -> list[_Image]:
    """Load ``count`` images drawn at random; another one is drawn for each that cannot be decoded.

    Args:
        files: What to draw from.
        count: How many; all of them where there are fewer.
        seed: Of the draw.
        load: Returns an image, None where it cannot be decoded.

    Raises:
        DataError: None of the files can be decoded.
    """
    loaded, broken = [], list[Path]()
    left, wanted = list(files), draw_files(files, count, seed)
    while wanted:
        for file in track(wanted, "Loading calibration images"):
            image = load(file)
            if image is None:
                broken.append(file)
            else:
                loaded.append(image)
        tried = set(wanted)
        left = [file for file in left if file not in tried]
        wanted = draw_files(left, min(count, len(files)) - len(loaded), seed) if len(loaded) < count else []
    problems = [f"{file}: it cannot be decoded" for file in broken]
    if broken and not loaded:
        raise DataError(left_out(problems, len(files), "the training data"))
    if broken:
        LOGGER.warning("%s", left_out(problems, len(loaded) + len(broken), "those drawn for calibration"))
    return loaded
