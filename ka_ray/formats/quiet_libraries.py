"""Silence libraries that convert models and speak of every step."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir", "root")
"""Loggers of libraries that speak of each operation that they rewrite."""


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide warnings and messages of the libraries that convert models."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
