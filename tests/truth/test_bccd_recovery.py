"""On a real detector: 70 % of the MACs keep at least 96 % of the AP before any training."""

import shutil

import pytest

import yolo_prune


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("weights", ["bccd_yolov5nu.pt", "bccd_yolo11n.pt"])
def test_most_of_the_accuracy_survives_without_training(shared, tmp_path, weights):
    shutil.copytree(shared / "data" / "bccd", tmp_path / "bccd", copy_function=shutil.copy)

    def prune(**options):
        return yolo_prune.prune(
            shared / "weights" / weights,
            data=tmp_path / "bccd" / "data.yaml",
            keep_macs=0.7,
            bench=False,
            recover_seconds=0,
            verbose=False,
            project=str(tmp_path / "runs"),
            **options,
        ).report.rows[:2]

    parent, pruned = prune(steps=4)
    assert pruned.gmacs <= 0.7 * parent.gmacs
    assert pruned.ap >= 0.96 * parent.ap
    _, control = prune(steps=1, criterion="bn_scale", fold=False, recalibrate_bn=False)
    assert control.gmacs <= 0.7 * parent.gmacs
    assert control.ap < 0.96 * parent.ap  # as many MACs, without reconstruction
