"""Optuna's storage in memory, for one study, with what its own has no way to do."""

import copy

from optuna.storages import InMemoryStorage
from optuna.trial import TrialState


class Memory(InMemoryStorage):
    """Trials of one study, of which a finished one may be told again.

    Optuna 5.0.0 refuses every change of a finished trial. In a storage of one study a trial's
    number is its id too.
    """

    def reopen(self, number: int) -> None:
        """Let a trial run as if it had never been told; one that still runs stays as it is.

        It keeps its place in its generation, and among the parents of the next one.
        """
        trial = copy.copy(self.get_trial(number))
        trial.state, trial.values, trial.datetime_complete = TrialState.RUNNING, None, None
        trial.system_attrs = {
            key: value
            for key, value in trial.system_attrs.items()
            if not key.startswith("constraints:")
        }
        self._set_trial(number, trial)

    def disinherit(self, number: int) -> None:
        """Take a trial out of the parents of every generation, which hold finished trials only."""
        (study,) = self.get_all_studies()
        for key, parents in study.system_attrs.items():
            if isinstance(parents, list) and number in parents:
                rest = [parent for parent in parents if parent != number]
                self.set_study_system_attr(study._study_id, key, rest)
