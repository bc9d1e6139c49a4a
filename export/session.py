"""The one place that makes onnxruntime sessions: CPU only, threads fixed, no spinning, quiet."""

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
from qkd.export.onnx_graph import load
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
    """A session on the CPU. ``threads``: None takes all cores this process may use. Raises ExportError if it cannot run.

    Without ``optimize`` every operator runs as written, nothing is fused. ``write_to`` keeps the optimized graph.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = usable_cores() if threads is None else threads
    options.inter_op_num_threads = 1
    # spinning threads triple the medians of everybody else on a machine with other work
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
        raise ExportError(_refused(source, error)) from error


def predict(source: Source, images: np.ndarray, *, batch: int = 64, threads: int | None = None) -> np.ndarray:
    """Logits (N, classes) of onnxruntime for images as the file takes them, ``batch`` at a time.

    float32 (N, C, H, W), or for a file with raw input uint8 in its layout.
    """
    return run(open_session(source, threads=threads), images, batch)


def run(session: onnxruntime.InferenceSession, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """First output of a session for images as its file takes them, ``batch`` at a time."""
    name = only_input(session)
    images = require_images(images, input_type(session))
    try:
        parts = [session.run(None, {name: images[i : i + batch]})[0] for i in range(0, len(images), batch)]
    except Exception as error:
        raise ExportError(f"onnxruntime failed on images of {images.shape[1:]}: {_first_line(error)}") from error
    return np.concatenate(parts)


def require_images(images: np.ndarray, wanted: type[np.generic] = np.float32) -> np.ndarray:
    """The images, contiguous and of the wanted type; raises ExportError where there are none, or they are of the other kind.

    Bytes are never taken for normalised images, nor the other way round: both would run and be wrong.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not len(images):
        raise ExportError(f"images of the shape {images.shape}; give at least one, as (N, channels, height, width)")
    if (images.dtype == np.uint8) != (wanted is np.uint8):
        kind = "raw uint8 images" if wanted is np.uint8 else "normalised float images"
        raise ExportError(f"the file takes {kind}, not {images.dtype}; give those")
    return np.ascontiguousarray(images, dtype=wanted)


def input_type(session: onnxruntime.InferenceSession, where: object = "the model") -> type[np.generic]:
    """What numbers a session's images are; raises ExportError, naming ``where``, for a type that images never have."""
    only_input(session, where)
    found = session.get_inputs()[0].type
    if found not in TYPES:
        raise ExportError(f"{where}: its input is {found}; possible are {', '.join(TYPES)}")
    return TYPES[found]


def matching_input(
    session: onnxruntime.InferenceSession, images: np.ndarray, raw: np.ndarray | None, where: object = "the model"
) -> np.ndarray | None:
    """Of the same images normalised and ``raw`` (uint8), both (N, C, H, W), those the session takes, in its layout.

    None where it takes raw images and there are none.
    """
    if input_type(session, where) is not np.uint8:
        return images
    if raw is None:
        return None
    told = session.get_modelmeta().custom_metadata_map.get("layout", "")
    sizes, channels = session.get_inputs()[0].shape, raw.shape[1]
    last = told == "nhwc" if told else sizes[1] != channels and sizes[-1] == channels
    return np.ascontiguousarray(raw.transpose(0, 2, 3, 1)) if last else raw


def matching_input_of(source: Source, images: np.ndarray, raw: np.ndarray, classes: int | None = None) -> np.ndarray:
    """``matching_input`` for a file that is not open yet. Raises ExportError where it takes others, or has other ``classes``."""
    where = "the model" if isinstance(source, onnx.ModelProto) else source
    session = open_session(source, threads=1)
    given = matching_input(session, images, raw, where)
    assert given is not None
    _require_fit("takes images of", session.get_inputs()[0].shape, given.shape, where)
    logits = session.get_outputs()[0].shape
    if classes is not None and len(logits) == 2:
        _require_fit("tells apart classes:", logits, (len(given), classes), where)
    return given


def _require_fit(what: str, wanted: Sequence[object], found: tuple[int, ...], where: object) -> None:
    """Both with the batch in front, whose size is left open, as is any that a file names or leaves out."""
    fits = len(wanted) in (0, len(found)) and all(
        a == b for a, b in zip(wanted[1:], found[1:], strict=False) if isinstance(a, int)
    )
    if not fits:
        theirs, ours = (" x ".join(str(size) for size in sizes[1:]) for sizes in (wanted, found))
        raise ExportError(f"{where}: {what} {theirs}; the data has {ours}")


def only_input(session: onnxruntime.InferenceSession, where: object = "the model") -> str:
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise ExportError(f"{where}: has {len(inputs)} inputs; only models with one, the images, can be run here")
    return str(inputs[0].name)


def optimized(source: Source) -> onnx.ModelProto:
    """The graph that onnxruntime really runs, after all its rewriting, with the names of the layers as emitted."""
    with tempfile.TemporaryDirectory(prefix="qkd-") as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(source, threads=1, write_to=path)
        model = onnx.load(str(path))
    for node in model.graph.node:
        node.name = re.sub(r"_token_\d+$", "", node.name)
    return model


def read_metadata(source: Source) -> dict[str, str]:
    return {entry.key: entry.value for entry in load(source).metadata_props}


def _refused(source: Source, error: Exception) -> str:
    where = "the model" if isinstance(source, onnx.ModelProto) else str(source)
    if not isinstance(source, onnx.ModelProto) and not Path(source).is_file():
        return f"{where}: no such file; name an .onnx file"
    try:
        needed = read_metadata(source).get("minimum_onnxruntime", "")
    except ExportError as unreadable:
        return str(unreadable)
    if needed and _version(onnxruntime.__version__) < _version(needed):
        return f"{where}: needs onnxruntime {needed}, this is {onnxruntime.__version__}; export with storage int8"
    return f"{where}: onnxruntime {onnxruntime.__version__} refuses it: {_first_line(error)}"


def _version(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)[:2]]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
