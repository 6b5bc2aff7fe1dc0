"""Exporters and compilers talk; a measurement in a trial should not."""

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any

NOISY_LOGGERS = ("torch", "torch.onnx", "torch.fx.experimental", "onnxscript", "onnx_ir")


@contextmanager
def silence() -> Iterator[None]:
    """Keep what exporters report of their progress and of missing libraries off the screen.

    Afterwards the root logger is as it was: where OpenVINO 2026 cannot convert a network it leaves
    the level at ERROR, and nobody's warnings would come through any more.
    """
    root = logging.getLogger()
    levels: Mapping[logging.Logger, int] = {
        logger: logger.level for logger in map(logging.getLogger, NOISY_LOGGERS)
    }
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.callback(_restore, root, root.level, root.handlers[:], root.filters[:])
        for logger, level in levels.items():
            logger.setLevel(logging.CRITICAL)
            stack.callback(logger.setLevel, level)
        yield


def _restore(logger: logging.Logger, level: int, handlers: list[Any], filters: list[Any]) -> None:
    logger.setLevel(level)
    logger.handlers[:], logger.filters[:] = handlers, filters
