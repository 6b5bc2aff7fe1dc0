"""Ray's settings as a sweep needs them: in its environment, its logs and its signals."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from autoprune.orchestration.environment import environment

ENVIRONMENT = {
    # With a searcher Tune 2.60 holds one pending trial, and reused actors then run one at a time
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
    # The journal and the tracker record results; Tune's CSV, JSON and TensorBoard files do not
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Nor does anyone restore from Tune's own state, which grows with every trial; written every
    # 10 s by default, it is now written at the beginning and at the end
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",
    # Ctrl-C is ours: Tune's own handler ends every trial at once
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A trial's failure is shown once, by the console
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Tune would run a preempted trial again by itself, and nobody else would hear of it
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",
    # Tune would move every worker into its trial's folder, away from the user's relative paths
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
OPTIONS: dict[str, Any] = {
    "log_to_driver": False,
    "logging_level": "ERROR",
    "configure_logging": False,
}
LOGGERS = {
    # Ray and Tune 2.60 warn of the token that guards the cluster, which is as it should be, and
    # of result files that are switched off here
    **dict.fromkeys(("ray", "ray.tune", "ray._private"), logging.ERROR),
    # Of what failed the console tells; and of a full disk the sweep, not Tune's own snapshots
    **dict.fromkeys(("ray.tune.tune", "ray.tune.execution.experiment_state"), logging.CRITICAL),
}


@contextmanager
def our_signals() -> Iterator[None]:
    """Take SIGTERM back from Ray 2.60, whose own handlers end the driver at once."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


@contextmanager
def ray_as_needed() -> Iterator[None]:
    """Ray's settings in the environment and the levels of its logs, put back afterwards."""
    loggers = {logging.getLogger(name): level for name, level in LOGGERS.items()}
    levels = [logger.level for logger in loggers]
    for logger, level in loggers.items():
        logger.setLevel(level)
    try:
        with environment(ENVIRONMENT):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
