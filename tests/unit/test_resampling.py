"""Resizing without an image library gives the pixels of one, to within 1 of 255."""

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow

from yolo_prune.errors import MissingRuntimeError
from yolo_prune.runtimes import images, resampling

SHAPES = [
    ((480, 640), (320, 427)),
    ((480, 640), (240, 320)),
    ((37, 501), (5, 64)),
    ((48, 64), (300, 400)),
    ((333, 500), (640, 640)),
    ((1, 9), (4, 3)),
    ((7, 1), (5, 5)),
    ((20, 30), (20, 31)),
]


def random_image(shape, channels):
    return np.random.default_rng(0).integers(0, 256, (*shape, channels), dtype=np.uint8)


def furthest(one, other):
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("channels", [1, 3, 6])
@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_linear_pixels_are_those_of_opencv_to_one_of_255(old, new, channels):
    image = random_image(old, channels)
    theirs = cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR).reshape(*new, channels)
    assert furthest(resampling.linear_by_numpy(image, new), theirs) <= 1
    assert furthest(resampling.resize_linear(image, new), theirs) == 0


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_smooth_pixels_are_those_of_pillow_to_one_of_255(old, new, channels):
    image = random_image(old, channels)
    theirs = np.dstack(
        [
            np.asarray(Pillow.fromarray(image[..., band]).resize(new[::-1], Pillow.Resampling.BILINEAR))
            for band in range(channels)
        ]
    )
    assert furthest(resampling.smooth_by_numpy(image, new), theirs) <= 1
    assert furthest(resampling.resize_smoothly(image, new), theirs) == 0


def test_the_nearest_pixel_is_further_away_than_that():
    image = random_image((480, 640), 3)
    theirs = cv2.resize(image, (427, 320), interpolation=cv2.INTER_LINEAR)
    assert furthest(cv2.resize(image, (427, 320), interpolation=cv2.INTER_NEAREST), theirs) > 100


@pytest.fixture
def no_cv2(monkeypatch):
    for module in (resampling, images):
        monkeypatch.setattr(module, "has_cv2", lambda: False)


@pytest.mark.usefixtures("no_cv2")
def test_the_letterbox_needs_no_opencv():
    image = images.draw_image(0)
    bare = images.letterbox(image, (320, 416))
    resized = cv2.resize(image, (416, 312), interpolation=cv2.INTER_LINEAR)
    assert furthest(bare[4:316], resized) <= 1
    assert set(np.unique(np.vstack([bare[:4], bare[316:]]))) == {114}
    assert resampling.resized_by().startswith("NumPy ")


@pytest.mark.usefixtures("no_cv2")
def test_images_are_read_by_pillow_where_there_is_no_opencv(tmp_path):
    pixels = random_image((8, 6), 3)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    assert (images.read_image(tmp_path / "a.png", 3) == pixels).all()
    grey = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_GRAYSCALE)[..., None]
    assert furthest(images.read_image(tmp_path / "a.png", 1), grey) <= 1
    with pytest.raises(MissingRuntimeError, match="reading images of 6 channels needs OpenCV"):
        images.read_image(tmp_path / "a.png", 6)
