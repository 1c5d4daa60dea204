"""Evaluate what is deployed: an exported file has its checkpoint's AP on images that are padded alike."""

import importlib.util
import json
import shutil
import warnings
import zipfile
from pathlib import Path

import pytest

from yolo_prune import cli
from yolo_prune.adapters.ultralytics.export import export_onnx
from yolo_prune.adapters.ultralytics.exported import is_export, open_export
from yolo_prune.bench.parity import TOLERANCE
from yolo_prune.errors import CheckpointError, MissingRuntimeError

PADDED = (
    "Every image was padded to 64 x 64 px, the fixed input of the file; a checkpoint is evaluated on rectangles unless "
    "rect=false, and the padding alone can change AP."
)


@pytest.fixture(scope="module")
def checkpoint(parent, tmp_path_factory) -> Path:
    """The parent, in a folder that exports may be written into."""
    return Path(shutil.copy(parent, tmp_path_factory.mktemp("exports") / "tiny.pt"))


@pytest.fixture(scope="module")
def fixed(checkpoint) -> Path:
    return export_onnx(checkpoint, checkpoint.with_name("fixed.onnx"), imgsz=64)


@pytest.fixture(scope="module")
def of_squares(checkpoint, data, tmp_path_factory) -> float:
    """AP of the checkpoint on images that are padded to squares."""
    return ap_of(checkpoint, data, tmp_path_factory.mktemp("ap"), "imgsz=64", "rect=false")


def host_export(checkpoint: Path, **options) -> Path:
    from ultralytics import YOLO

    with (
        warnings.catch_warnings()
    ):  # 2026-11: torch deprecates the TorchScript exporter, which the host still uses
        warnings.simplefilter("ignore")
        return Path(YOLO(str(checkpoint)).export(imgsz=64, verbose=False, **options))


def ap_of(model: Path, data: Path, folder: Path, *words: str) -> float:
    out = folder / "eval.json"
    assert cli.main(["eval", f"model={model}", f"data={data}", "workers=0", f"json={out}", *words]) == 0
    return json.loads(out.read_text())["coco"]["ap"]


def test_a_file_of_open_size_has_the_checkpoint_s_ap(checkpoint, data, tmp_path, capsys):
    file = export_onnx(checkpoint, tmp_path / "open.onnx", imgsz=64, dynamic=True)
    expected = ap_of(checkpoint, data, tmp_path, "imgsz=64")
    assert expected > 0.4
    assert ap_of(file, data, tmp_path) == pytest.approx(expected, abs=1e-3)
    assert "padded" not in capsys.readouterr().out


def test_a_file_of_fixed_size_has_the_checkpoint_s_ap_on_squares_and_says_so(
    fixed, data, of_squares, tmp_path, capsys
):
    assert of_squares > 0.4
    assert ap_of(fixed, data, tmp_path) == pytest.approx(of_squares, abs=1e-3)
    assert PADDED in capsys.readouterr().out.splitlines()
    assert json.loads((tmp_path / "eval.json").read_text())["notes"] == [PADDED]


def test_a_torchscript_file_has_it_too(checkpoint, data, of_squares, tmp_path):
    file = host_export(checkpoint, format="torchscript")
    assert ap_of(file, data, tmp_path) == pytest.approx(of_squares, abs=1e-3)


def test_an_openvino_folder_has_it_too(checkpoint, data, of_squares, tmp_path):
    pytest.importorskip("openvino")
    folder = host_export(checkpoint, format="openvino")
    assert ap_of(folder, data, tmp_path) == pytest.approx(of_squares, abs=1e-3)
    assert checked(folder, data, tmp_path)["accuracy"]["ap"] == pytest.approx(of_squares, abs=2e-3)


def test_a_file_that_suppresses_by_itself_says_what_that_does_to_ap(
    checkpoint, data, of_squares, tmp_path, capsys
):
    file = host_export(Path(shutil.copy(checkpoint, tmp_path / "nms.pt")), format="onnx", nms=True)
    assert 0.1 < ap_of(file, data, tmp_path) < of_squares + 0.01
    expected = (
        "The file suppresses boxes by itself, at its own thresholds: what it dropped is not in this AP."
    )
    assert expected in capsys.readouterr().out.splitlines()


def on_runtime(model: Path, data: Path, folder: Path, runtime: str, *words: str) -> dict:
    out = folder / "runtime.json"
    where = [f"model={model}", f"data={data}", f"runtime={runtime}", f"json={out}"]
    assert cli.main(["eval", *where, *words]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "ncnn"])
def test_a_checkpoint_is_evaluated_as_it_is_deployed_on_a_runtime(
    checkpoint, data, of_squares, tmp_path, capsys, runtime
):
    for package in (runtime, *(["pnnx"] if runtime == "ncnn" else [])):
        needed(package)
    found = on_runtime(checkpoint, data, tmp_path, runtime, "imgsz=64")
    assert found["ap"] == pytest.approx(of_squares, abs=2e-3)
    assert found["low"] <= found["ap"] <= found["high"]
    assert (found["runtime"], found["imgsz"]) == (runtime, 64)
    compared = "compared with the checkpoint in PyTorch: outputs differ by up to" in capsys.readouterr().out
    assert compared == (runtime != "torch")
    assert found.get("difference", 0.0) < 1e-4


def needed(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def test_a_file_is_evaluated_on_the_runtime_that_is_asked_for(fixed, data, of_squares, tmp_path, capsys):
    assert on_runtime(fixed, data, tmp_path, "onnxruntime")["ap"] == pytest.approx(of_squares, abs=2e-3)
    assert "compared" not in capsys.readouterr().out, "nobody says what it was made from"


def test_a_file_of_another_model_is_not_evaluated_for_the_checkpoint(
    checkpoint, data, monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(TOLERANCE, "float32", -1.0)
    words = [f"model={checkpoint}", f"data={data}", "runtime=onnxruntime", "imgsz=64"]
    assert cli.main(["eval", *words]) == 2
    assert (
        "for onnxruntime does not compute what its checkpoint computes: outputs differ"
        in capsys.readouterr().err
    )
    assert cli.main(["eval", *words, "weights=a.pth"]) == 2
    assert "runtime= takes a checkpoint or an exported file: leave weights= out." in capsys.readouterr().err


def checked(model: Path, data: Path, folder: Path, *words: str) -> dict:
    out = folder / "check.json"
    limits = ["min_ap=0.1", "min_fps=0.1", "seconds=0.1", "threads=1"]
    assert cli.main(["check", f"model={model}", f"data={data}", *limits, f"json={out}", *words]) == 0
    return json.loads(out.read_text())


def test_check_finds_the_ap_of_a_file_without_its_host(fixed, checkpoint, data, of_squares, tmp_path):
    assert checked(fixed, data, tmp_path)["accuracy"]["ap"] == pytest.approx(of_squares, abs=2e-3)
    file = host_export(Path(shutil.copy(checkpoint, tmp_path / "nms.pt")), format="onnx", nms=True)
    assert checked(file, data, tmp_path)["accuracy"]["ap"] == pytest.approx(
        ap_of(file, data, tmp_path), abs=2e-3
    )


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_check_takes_a_checkpoint_and_exports_it_where_the_runtime_wants_a_file(
    runtime, checkpoint, data, of_squares, tmp_path
):
    pytest.importorskip(runtime)
    found = checked(checkpoint, data, tmp_path, f"runtime={runtime}", "imgsz=64")
    assert found["conditions"]["runtime"].startswith(runtime)
    assert Path(found["file"]).suffix == (".pt" if runtime == "torch" else ".onnx")
    assert found["accuracy"]["ap"] == pytest.approx(of_squares, abs=2e-3)


def test_the_int8_file_of_a_run_can_be_evaluated(finished, data, tmp_path):
    folder, _, _ = finished
    file = folder / "weights" / "best_int8.onnx"
    assert ap_of(file, data, tmp_path) > 0.3
    assert checked(file, data, tmp_path)["precision"] == "int8"


def test_other_classes_another_size_and_other_channels_are_one_sentence_each(fixed, data, tmp_path, capsys):
    words = ["eval", f"model={fixed}", "workers=0"]
    other = tmp_path / "three.yaml"
    other.write_text(f"path: {data.parent}\ntrain: images/train\nval: images/val\nnames: [a, b, c]\n")
    grey = tmp_path / "grey.yaml"
    grey.write_text(
        f"path: {data.parent}\ntrain: images/train\nval: images/val\nnames: [a, b]\nchannels: 1\n"
    )
    assert cli.main([*words, f"data={other}"]) == 2
    assert f"the model has 2 classes and {other} has 3." in capsys.readouterr().err
    assert cli.main([*words, f"data={data}", "imgsz=96"]) == 2
    expected = f"'{fixed}' takes images of 64 x 64 px and imgsz=96 was asked for. Leave imgsz= away, or export it again."
    assert expected in capsys.readouterr().err
    assert cli.main([*words, f"data={grey}"]) == 2
    assert f"'{fixed}' takes images of 3 channels and the data has 1." in capsys.readouterr().err


def test_what_the_host_did_not_export_is_refused(tmp_path):
    import onnx

    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 64, 64])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3, 64, 64])
    graph = onnx.helper.make_graph([node], "g", [value], [out])
    foreign = tmp_path / "foreign.onnx"
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), foreign
    )
    with pytest.raises(
        CheckpointError, match=r"does not say its task, classes and image size: expected a file that"
    ):
        open_export(foreign)


def _file(path: Path, text: bytes = b"not an export") -> Path:
    path.write_bytes(text)
    return path


def test_damaged_and_missing_files_are_named(tmp_path):
    empty = tmp_path / "a_openvino_model"
    empty.mkdir()
    with zipfile.ZipFile(tmp_path / "bare.torchscript", "w") as archive:
        archive.writestr("x", "y")
    cases = {
        tmp_path / "no.onnx": r"^the export '.*no\.onnx' does not exist\.$",
        _file(tmp_path / "b.torchscript"): r"is not a TorchScript file, or a damaged one: ",
        tmp_path / "bare.torchscript": r"does not say its task",
        _file(tmp_path / "c.onnx"): r"is not an ONNX model that onnxruntime can load",
    }
    for path, message in cases.items():
        with pytest.raises(CheckpointError, match=message):
            open_export(path)


def test_a_missing_runtime_names_its_extra(tmp_path, monkeypatch):
    from yolo_prune.adapters.ultralytics import exported

    monkeypatch.setattr(exported.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "a_openvino_model").mkdir()
    for path, module, extra in (
        (_file(tmp_path / "a.onnx"), "onnx", "onnx"),
        (tmp_path / "a_openvino_model", "openvino", "openvino"),
    ):
        with pytest.raises(MissingRuntimeError) as error:
            open_export(path)
        expected = f"evaluating '{path.name}' needs '{module}', which is not installed: "
        assert str(error.value) == expected + f'pip install "yolo-prune[{extra}]".'


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("a.onnx", True),
        ("a.torchscript", True),
        ("a_openvino_model/", True),
        ("a.pt", False),
        ("a.engine", False),
    ],
)
def test_exports_are_known_by_their_names(name, known):
    assert is_export(name) is known
