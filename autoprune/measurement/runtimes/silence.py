"""Exporters and compilers talk; a measurement in a trial should not."""

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

NOISY_LOGGERS = ("torch", "torch.onnx", "torch.fx.experimental", "onnxscript", "onnx_ir")


@contextmanager
def silence() -> Iterator[None]:
    """Keep what exporters report of their progress and of missing libraries off the screen."""
    levels: Mapping[logging.Logger, int] = {
        logger: logger.level for logger in map(logging.getLogger, NOISY_LOGGERS)
    }
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for logger, level in levels.items():
            logger.setLevel(logging.CRITICAL)
            stack.callback(logger.setLevel, level)
        yield
