"""The deadline of ``fit --within``."""

from proj.engine import clock
from proj.engine.callbacks.deadline import Deadline
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.runs.contents import PlanFacts


def deadline(cli: ExperimentCLI, plan: PlanFacts | None = None) -> list[Deadline]:
    """Return the callback of ``--within``; an empty list without it.

    Args:
        cli: the experiment.
        plan: the plan of a run to repeat.
    """
    within = cli.option("within")
    if within is None and plan is None:
        return []
    if plan is not None:
        return [Deadline(plan["seconds"], dict(plan))]
    return [Deadline(clock.read_duration(str(within), "--within"))]
