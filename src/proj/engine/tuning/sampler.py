"""Proposals that do not depend on who makes them, and when: a study that was interrupted goes on as if it had not been."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GridSampler, QMCSampler
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState


def place(study: Study, trial: FrozenTrial) -> int:
    """The number that a trial would have if no trial had ever been made again after its worker died."""
    again = RetryHeartbeatStaleTrialCallback.retried_trial_number
    first = again(trial)
    first = trial.number if first is None else first
    others = study.get_trials(deepcopy=False)
    return first - sum(other.number < first and again(other) is not None for other in others)


class PlaceSampler(BaseSampler):
    """Any sampler of Optuna's, made anew for each trial with a seed of its own: a hash of the study's and the place.

    Args:
        make: builds the sampler from a seed.
        seed: of the study.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self.make, self.seed = make, seed
        self.samplers: dict[int, BaseSampler] = {}  # by number of the trial, while that is running

    def _made(self, study: Study, trial: FrozenTrial, name: str = "") -> BaseSampler:
        digest = hashlib.sha256(f"{self.seed} {place(study, trial)} {name}".encode()).digest()
        sampler = self.make(int.from_bytes(digest[:4], "little"))
        return (
            self.make(self.seed) if isinstance(sampler, GridSampler | QMCSampler) else sampler
        )  # one order for all trials

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.samplers[trial.number] = self._made(study, trial)
        self.samplers[trial.number].before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.samplers[trial.number].infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.samplers[trial.number].sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        # with a generator for each parameter: a trial that is made again has some of them already
        sampler = self._made(study, trial, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        if sampler := self.samplers.pop(trial.number, None):
            sampler.after_trial(study, trial, state, values)
