"""On a real detector: 70 % of the MACs keep at least 96 % of the AP before any training."""

import shutil

import pytest

import yolo_prune


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("weights", ["bccd_yolov5nu.pt", "bccd_yolo11n.pt"])
def test_most_of_the_accuracy_survives_without_training(shared, tmp_path, weights):
    shutil.copytree(shared / "data" / "bccd", tmp_path / "bccd", copy_function=shutil.copy)
    result = yolo_prune.prune(
        shared / "weights" / weights,
        data=tmp_path / "bccd" / "data.yaml",
        keep_macs=0.7,
        rounds=4,
        bench=False,
        verbose=False,
        project=str(tmp_path / "runs"),
    )
    parent, pruned = result.report.rows[:2]
    assert pruned.gmacs <= 0.7 * parent.gmacs
    assert pruned.ap >= 0.96 * parent.ap
    bare = next(stage.ap for stage in result.report.stages if stage.name == "cut")
    assert bare < pruned.ap - 0.01  # the control: the same channels, cut without folding
