"""What runs around the network: letterbox, scaling, suppression."""

import re

import cv2
import numpy as np
import pytest

from yolo_prune.errors import DataError
from yolo_prune.runtimes.detections import MAX_DETECTIONS, detect, suppress
from yolo_prune.runtimes.images import (
    centre_crop,
    draw_image,
    letterbox,
    load_images,
    read_image,
    to_input,
)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 480), (64, 64), (37, 501)])
def test_the_letterbox_keeps_the_aspect_ratio_and_centres_the_image(height, width):
    square = letterbox(np.full((height, width, 3), 255, np.uint8), 64)
    assert square.shape == (64, 64, 3)
    rows, columns = np.nonzero((square == 255).all(axis=2))
    scale = 64 / max(height, width)
    assert rows.max() - rows.min() + 1 == round(height * scale)
    assert columns.max() - columns.min() + 1 == round(width * scale)
    assert abs(rows.min() - (63 - rows.max())) <= 1
    assert set(np.unique(square)) <= {114, 255}


def test_the_input_is_rgb_in_zero_to_one():
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 2] = 255  # red, in BGR order
    batch = to_input([image, image], 32)
    assert batch.shape == (2, 3, 32, 32)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    assert batch[:, 0].min() == 1.0
    assert batch[:, 1:].max() == 0.0


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_other_channels_than_three_keep_their_order(channels):
    image = np.arange(channels, dtype=np.uint8) * 40 + np.zeros((48, 64, channels), np.uint8)
    batch = to_input([image], (32, 64))
    assert batch.shape == (1, channels, 32, 64)
    assert batch[0, :, 16, 32].tolist() == pytest.approx([40 * plane / 255 for plane in range(channels)])
    assert batch[0, :, 0, 0].tolist() == pytest.approx([114 / 255] * channels)
    assert to_input([image], 32, centre_crop).shape == (1, channels, 32, 32)
    assert [image.shape for image in load_images(None, channels)] == [(480, 640, channels)] * 4


@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 480), (64, 128), (30, 500)])
def test_the_letterbox_of_a_shape_keeps_the_aspect_ratio_and_centres_the_image(height, width):
    framed = letterbox(np.full((height, width, 3), 255, np.uint8), (64, 128))
    assert framed.shape == (64, 128, 3)
    rows, columns = np.nonzero((framed == 255).all(axis=2))
    scale = min(64 / height, 128 / width)
    assert rows.max() - rows.min() + 1 == round(height * scale)
    assert columns.max() - columns.min() + 1 == round(width * scale)
    assert abs(rows.min() - (63 - rows.max())) <= 1
    assert abs(columns.min() - (127 - columns.max())) <= 1


def test_images_are_read_with_the_channels_that_the_model_takes(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 6), dtype=np.uint8)
    cv2.imwritemulti(str(tmp_path / "bands.tiff"), [pixels[..., band] for band in range(6)])
    cv2.imwrite(str(tmp_path / "alpha.png"), pixels[..., :4])
    cv2.imwrite(str(tmp_path / "deep.png"), pixels[..., 0].astype(np.uint16) * 256 + 7)
    assert (read_image(tmp_path / "bands.tiff", 6) == pixels).all()
    assert (read_image(tmp_path / "alpha.png", 4) == pixels[..., :4]).all()
    assert (read_image(tmp_path / "alpha.png", 3) == pixels[..., :3]).all()
    assert read_image(tmp_path / "alpha.png", 1).shape == (8, 6, 1)
    assert (read_image(tmp_path / "deep.png", 1)[..., 0] == pixels[..., 0]).all()
    with pytest.raises(DataError, match=r"alpha\.png' has 4 channels of uint8, the model takes 6 of uint8"):
        read_image(tmp_path / "alpha.png", 6)


def test_drawn_images_are_the_same_every_time_and_differ_from_each_other():
    assert (draw_image(0) == draw_image(0)).all()
    assert (draw_image(0) != draw_image(1)).any()
    assert [image.shape for image in load_images(None)] == [(480, 640, 3)] * 4


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read the image '.*none\.jpg'"):
        load_images([tmp_path / "none.jpg"])
    with pytest.raises(DataError, match="no images to measure with"):
        load_images([])


def test_suppression_drops_the_overlapping_box_of_the_same_class_only():
    boxes = np.array(
        [
            [0, 0, 10, 10, 0.9, 0],
            [0, 0, 10, 11, 0.8, 0],
            [0, 0, 10, 11, 0.7, 1],
            [20, 20, 30, 30, 0.6, 0],
        ],
        np.float32,
    )
    assert suppress(boxes)[:, 4].tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert suppress(boxes[:0]).shape == (0, 6)


def test_at_most_300_boxes_are_kept():
    corner = np.arange(400, dtype=np.float32)[:, None] * 20
    boxes = np.concatenate([corner, corner, corner + 10, corner + 10, 0 * corner + 0.5, 0 * corner], axis=1)
    assert len(suppress(boxes)) == MAX_DETECTIONS


@pytest.mark.parametrize(
    ("shape", "classes", "boxes"),
    [
        ((1, 7, 84), 3, 1),
        ((1, 7, 84), None, 1),
        ((1, 7, 7), 3, 1),
        ((1, 39, 84), 3, 1),
        ((1, 300, 7), 3, 1),
        ((1, 300, 6), 3, 1),
    ],
    ids=[
        "anchors",
        "anchors of unknown classes",
        "as many anchors as channels",
        "anchors with mask coefficients",
        "queries",
        "end to end",
    ],
)
def test_the_layout_of_the_output_is_read_from_its_shape(shape, classes, boxes):
    output = np.zeros(shape, np.float32)
    row = [50, 50, 20, 20, 0.9, 0][: min(shape[1:])]
    if shape[1] <= shape[2]:
        output[0, : len(row), 5] = row
    else:
        output[0, 5, : len(row)] = row
    (found,) = detect(output, classes)
    assert found.shape == (boxes, 6)
    assert found[0, 4] == pytest.approx(0.9)


def test_a_classifier_gives_its_best_five():
    (found,) = detect(np.arange(10, dtype=np.float32)[None] / 10)
    assert found[:, 1].tolist() == [9, 8, 7, 6, 5]


def test_an_output_too_small_for_its_classes_is_refused():
    with pytest.raises(DataError, match=r"the output \(1, 7, 84\) is too small for 80 classes"):
        detect(np.zeros((1, 7, 84), np.float32), 80)


def test_an_output_of_another_shape_is_a_sentence():
    expected = "the network's first output has the shape (1, 8, 32, 32): expected [B, 4 + classes, anchors], "
    with pytest.raises(DataError, match=f"^{re.escape(expected)}"):
        detect(np.zeros((1, 8, 32, 32), np.float32))
