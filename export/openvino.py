"""OpenVINO as a second runtime for the same files. It is an extra, and imported only when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from qkd.errors import ExportError
from qkd.export.targets import Runtime
from qkd.options import require_extra


def require_openvino() -> Any:
    """The package ``openvino``. Raises ExportError where it is not installed."""
    return require_extra("openvino", error=ExportError)


def load_openvino() -> Runtime:
    """OpenVINO as a runtime. Raises ExportError where it is not installed."""
    return Runtime("openvino", str(require_openvino().__version__), OpenVino)


@final
class OpenVino:
    """A file compiled for the CPU, called like an onnxruntime session. Raises ExportError for a file it cannot read.

    Floats stay float32: by itself it would take bfloat16 where the processor has it, which is another network.
    """

    def __init__(self, path: Path, threads: int) -> None:
        package = require_openvino()
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        try:
            self.compiled = package.Core().compile_model(str(path), "CPU", settings)
            self.request = self.compiled.create_infer_request()
        except Exception as error:  # its exceptions share no base with a name of their own
            reason = next((line for line in reversed(str(error).strip().splitlines()) if line.strip()), "?")
            raise ExportError(
                f"{path}: openvino {package.__version__} refuses it: {reason.strip()}", key="openvino.refused"
            ) from error

    def run(self, _outputs: None, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The first output, as onnxruntime would give it."""
        return [np.array(self.request.infer(dict(feed), share_inputs=True)[0])]

    def logits(self, name: str, images: np.ndarray, batch: int = 64) -> np.ndarray:
        """Logits (N, classes) for images as the file takes them."""
        parts = (images[i : i + batch] for i in range(0, len(images), batch))
        return np.concatenate([self.run(None, {name: np.ascontiguousarray(part)})[0] for part in parts])
