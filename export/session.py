"""Sessions of onnxruntime, all made here: CPU only, a fixed number of threads, no spinning, no log; and running them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from qkd.errors import ExportError
from qkd.export.onnx_graph import first_line, load
from qkd.storage.environment import usable_cores

TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
}

Source = str | Path | onnx.ModelProto
"""An ONNX file, or the model itself."""


def open_session(
    source: Source, *, threads: int | None = None, optimize: bool = True, write_to: Path | None = None
) -> onnxruntime.InferenceSession:
    """A session on the CPU. Raises ExportError for a model that onnxruntime cannot open.

    threads: None takes all cores this process may use. optimize: without it every operator runs as written, nothing is
    fused. write_to: a file for the optimized graph.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = usable_cores() if threads is None else threads
    options.inter_op_num_threads = 1
    # spinning threads triple the medians of all other programs on a machine with other work
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if write_to is not None:
        options.optimized_model_filepath = str(write_to)
    model: Any = source.SerializeToString() if isinstance(source, onnx.ModelProto) else str(source)
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise _refused(source, error) from error


def predict(source: Source, images: np.ndarray, *, batch: int = 64, threads: int | None = None) -> np.ndarray:
    """Logits (N, classes) of onnxruntime for images as the file takes them, ``batch`` at a time.

    images: float32 (N, C, H, W), or for a file with uint8 input uint8 in its layout. threads: as for `open_session`.
    Raises ExportError for a file that cannot be opened or images that it does not take.
    """
    return run(open_session(source, threads=threads), images, batch)


def run(session: onnxruntime.InferenceSession, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """The first output of a session for images as its file takes them, ``batch`` at a time.

    Raises ExportError for images that it does not take.
    """
    name = only_input(session)
    images = require_images(images, input_type(session))
    try:
        parts = [session.run(None, {name: images[i : i + batch]})[0] for i in range(0, len(images), batch)]
    except Exception as error:
        raise ExportError(
            f"onnxruntime failed on images of {images.shape[1:]}: {first_line(error)}", key="images.failed"
        ) from error
    return np.concatenate(parts)


def require_images(images: np.ndarray, wanted: type[np.generic] = np.float32) -> np.ndarray:
    """The images, contiguous and of the wanted type; raises ExportError where there are none, or they are of the other kind.

    uint8 images are never taken for normalised ones, nor the other way round: both would run and be wrong.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not len(images):
        raise ExportError(
            f"images of the shape {images.shape}; give at least one, as (N, channels, height, width)",
            key="images.shape",
        )
    if (images.dtype == np.uint8) != (wanted is np.uint8):
        kind = "uint8 images" if wanted is np.uint8 else "normalised float images"
        raise ExportError(f"the file takes {kind}, not {images.dtype}; give those", key="images.type")
    return np.ascontiguousarray(images, dtype=wanted)


def input_type(session: onnxruntime.InferenceSession, where: object = "the model") -> type[np.generic]:
    """The number type of a session's images; raises ExportError, naming ``where``, for a type that images never have."""
    only_input(session, where)
    found = session.get_inputs()[0].type
    if found not in TYPES:
        raise ExportError(f"{where}: its input is {found}; possible are {', '.join(TYPES)}", key="model.input-type")
    return TYPES[found]


def matching_input(
    session: onnxruntime.InferenceSession, images: np.ndarray, uint8: np.ndarray | None, where: object = "the model"
) -> np.ndarray | None:
    """The images that a session takes, in its layout, from the same ones normalised and as ``uint8``, both (N, C, H, W).

    None where it takes uint8 images and none are given. Raises ExportError, naming ``where``, as `input_type` does.
    """
    if input_type(session, where) is not np.uint8:
        return images
    if uint8 is None:
        return None
    layout = session.get_modelmeta().custom_metadata_map.get("layout", "")
    sizes, channels = session.get_inputs()[0].shape, uint8.shape[1]
    last = layout == "nhwc" if layout else sizes[1] != channels and sizes[-1] == channels
    return np.ascontiguousarray(uint8.transpose(0, 2, 3, 1)) if last else uint8


def matching_input_of(source: Source, images: np.ndarray, uint8: np.ndarray, classes: int | None = None) -> np.ndarray:
    """`matching_input` for a file that is not open yet.

    Raises ExportError where the file takes images of another shape, or has another number of classes than ``classes``.
    """
    where = "the model" if isinstance(source, onnx.ModelProto) else source
    session = open_session(source, threads=1)
    given = matching_input(session, images, uint8, where)
    assert given is not None
    _require_fit("takes images of", session.get_inputs()[0].shape, given.shape, where)
    logits = session.get_outputs()[0].shape
    if classes is not None and len(logits) == 2:
        _require_fit("has logits for classes:", logits, (len(given), classes), where)
    return given


def _require_fit(what: str, wanted: Sequence[object], found: tuple[int, ...], where: object) -> None:
    """Compares two shapes but for the batch axis, and for axes whose size the file names or leaves out."""
    fits = len(wanted) in (0, len(found)) and all(
        a == b for a, b in zip(wanted[1:], found[1:], strict=False) if isinstance(a, int)
    )
    if not fits:
        theirs, ours = (" x ".join(str(size) for size in sizes[1:]) for sizes in (wanted, found))
        raise ExportError(f"{where}: {what} {theirs}; the data has {ours}", key="model.other-data")


def only_input(session: onnxruntime.InferenceSession, where: object = "the model") -> str:
    """The name of a session's input. Raises ExportError, naming ``where``, for a model with several."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise ExportError(
            f"{where}: has {len(inputs)} inputs; only models with one, the images, can be run here", key="model.inputs"
        )
    return str(inputs[0].name)


def optimized(source: Source) -> onnx.ModelProto:
    """The graph that onnxruntime really runs, after all its rewriting, with the names of the layers as exported."""
    with tempfile.TemporaryDirectory(prefix="qkd-") as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(source, threads=1, write_to=path)
        model = onnx.load(str(path))
    for node in model.graph.node:
        node.name = re.sub(r"_token_\d+$", "", node.name)
    return model


def read_metadata(source: Source) -> dict[str, str]:
    """The metadata of a model. Raises ExportError for a file that is missing or is not ONNX."""
    return {entry.key: entry.value for entry in load(source).metadata_props}


def _refused(source: Source, error: Exception) -> ExportError:
    """Why onnxruntime does not open a model."""
    where = "the model" if isinstance(source, onnx.ModelProto) else str(source)
    try:
        needed = read_metadata(source).get("minimum_onnxruntime", "")
    except ExportError as unreadable:
        return unreadable
    if needed and _version(onnxruntime.__version__) < _version(needed):
        return ExportError(
            f"{where}: needs onnxruntime {needed}, this is {onnxruntime.__version__}; export with storage int8",
            key="model.newer-onnxruntime",
        )
    return ExportError(
        f"{where}: onnxruntime {onnxruntime.__version__} refuses it: {first_line(error)}", key="model.refused"
    )


def _version(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)[:2]]
