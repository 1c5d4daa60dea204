"""Write a network of one layer as ONNX, for trying an installation: tiny_onnx.py FILE."""

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def main(file: str) -> None:
    """Write it: 3 x 64 x 64 pixels in, boxes and scores of 4 classes at 1024 places out."""
    weights = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["images", "weights"], ["made"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["made"], ["scores"]),
        helper.make_node("Reshape", ["scores", "shape"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 8, 1024])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([1, 8, 1024]), "shape"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
