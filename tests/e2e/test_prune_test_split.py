"""A run that is judged on test, which has other images than val: every one of its parts looks there."""

import json

import cv2
import pytest
from conftest import draw_squares

from yolo_prune import cli

IMAGES = 5


@pytest.fixture(scope="module")
def three_splits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split") / "data"
    draw_squares(folder)
    for kind in ("images", "labels"):
        (folder / kind / "test").mkdir()
    for index in range(IMAGES):
        image = cv2.imread(str(folder / "images" / "train" / f"{index}.png"))
        cv2.imwrite(str(folder / "images" / "test" / f"t{index}.png"), image)
        label = (folder / "labels" / "train" / f"{index}.txt").read_text()
        (folder / "labels" / "test" / f"t{index}.txt").write_text(label)
    yaml = folder / "data.yaml"
    yaml.write_text(f"{yaml.read_text()}test: images/test\n")
    return yaml


def test_a_run_on_the_test_split_ends_with_a_report_of_its_images(three_splits, parent, tmp_path):
    words = [
        "prune",
        f"model={parent}",
        f"data={three_splits}",
        "keep_macs=0.1",
        "criterion=random",
        "split=test",
    ]
    quick = ["steps=1", "calibration_images=16", "batch=8", "workers=0", "recover_seconds=0", "bench=false"]
    assert cli.main([*words, *quick, f"project={tmp_path}", "name=run"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["conditions"]["split"], report["conditions"]["images"]) == ("test", IMAGES)
    shown = json.loads((tmp_path / "run" / "examples" / "examples.json").read_text())
    assert shown["images"], shown["left_out"]
    assert all(each["name"].startswith("t") for each in shown["images"])
