"""The only module of this package that imports Brevitas, with the warnings of that import suppressed.

Importing Brevitas loads ``torch.utils.cpp_extension``, which logs a warning on machines that have nvcc but no GPU. Nothing
of that module is used here, so its logger is filtered during the import.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

NOISY = "torch.utils.cpp_extension"


def _drop(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress cpp_extension's warning about a missing GPU, and deprecation warnings, for the length of the block."""
    logger = logging.getLogger(NOISY)
    logger.addFilter(_drop)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.removeFilter(_drop)


with quiet():
    import brevitas.nn as qnn
    from brevitas.inject import ExtendedInjector, value
    from brevitas.inject.enum import FloatToIntImplType
    from brevitas.proxy.parameter_quant import WeightQuantProxyFromInjector
    from brevitas.proxy.runtime_quant import ActQuantProxyFromInjector
    from brevitas.quant_tensor import IntQuantTensor

__all__ = [
    "ActQuantProxyFromInjector",
    "ExtendedInjector",
    "FloatToIntImplType",
    "IntQuantTensor",
    "WeightQuantProxyFromInjector",
    "qnn",
    "quiet",
    "value",
]
