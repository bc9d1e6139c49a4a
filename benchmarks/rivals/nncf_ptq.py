"""NNCF on the float ONNX file, as it comes."""

from __future__ import annotations

import nncf
import numpy as np
import onnx
from task import main_of_file


def quantized(floating: str, images: np.ndarray, path: str) -> None:
    model = onnx.load(floating)
    name = model.graph.input[0].name
    dataset = nncf.Dataset(list(images), lambda image: {name: image[None]})
    onnx.save(nncf.quantize(model, dataset, subset_size=len(images)), path)


if __name__ == "__main__":
    main_of_file(quantized)
