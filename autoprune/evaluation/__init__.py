"""One trial, from a spec to an observation: prune, recalibrate, measure, recover, evaluate.

Free of Ray and MLflow, so that one trial runs anywhere.
"""

from autoprune.evaluation.logbook import failure_of
from autoprune.evaluation.networks import example_outputs, portable, settled_steps
from autoprune.evaluation.records import (
    Progress,
    Snapshot,
    TrialContext,
    TrialLimits,
)
from autoprune.evaluation.run import run_trial, trial_steps

__all__ = [
    "Progress",
    "Snapshot",
    "TrialContext",
    "TrialLimits",
    "example_outputs",
    "failure_of",
    "portable",
    "run_trial",
    "settled_steps",
    "trial_steps",
]
