"""The metrics of a split over several processes, with two or three messages."""

import re
import warnings
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities.distributed import gather_all_tensors

from proj.engine.callbacks.process_messages import gather_tensors
from proj.metrics.stage import StageMetrics


def compute_together(metrics: StageMetrics) -> dict[str, Tensor]:
    """Return the metrics of a split over all processes, then reset them.

    By itself, torchmetrics sends three messages for each state of each metric. Here the states of
    all metrics are sent together. torchmetrics reduces them as it would the others, so the values
    have the same bits. All processes return the values of process 0: the last bits of a mean may
    depend on the processor, and the processes must take the same decisions.
    """
    shared = list(_metrics_with_shared_states(metrics))
    states = [_states_to_send(metric) for metric in shared]
    device = metrics.loss.total.device
    gathered = gather_tensors([state for own in states for state in own], device)
    by_state = zip(*gathered, strict=True)
    for metric, own in zip(shared, states, strict=True):
        metric.dist_sync_fn = _Received([list(next(by_state)) for _ in own])
    try:
        values = metrics.compute()
    finally:
        for metric in shared:
            metric.dist_sync_fn = None
    first = gather_tensors(list(values.values()), device)[0]
    _ignore_advice(list(values))
    # Copies, as torch saves no views of the same bytes with several dtypes.
    return {name: value.clone() for name, value in zip(values, first, strict=True)}


def _ignore_advice(names: list[str]) -> None:
    """Hide Lightning's advice to reduce these metrics, because all processes have their values."""
    either = "|".join(map(re.escape, names))
    message = rf"It is recommended to use `self\.log\('(train|val|test)/({either})',"
    # Any call of `filterwarnings` lets Python show earlier warnings again.
    if not any(entry[1] and entry[1].pattern == message for entry in warnings.filters):
        warnings.filterwarnings("ignore", message)


def _metrics_with_shared_states(metrics: StageMetrics) -> Iterator[Metric]:
    """Yield all metrics, also those inside others, but none with a synchronization of its own."""
    for module in metrics.modules():
        if isinstance(module, MetricCollection):
            # One metric of those with equal states is updated. This gives its states to the others.
            module.values(copy_state=False)
    for module in metrics.modules():
        if not isinstance(module, Metric) or not module.sync_on_compute:
            continue
        if module.dist_sync_fn is None and module.process_group is None:
            yield module


def _states_to_send(metric: Metric) -> list[Tensor]:
    """Return the tensors that torchmetrics would send, in its order."""
    states: list[Tensor] = []

    def keep(state: Tensor, group: Any) -> list[Tensor]:
        states.append(state)
        return [state]

    with metric.sync_context(dist_sync_fn=keep):
        return states


class _Received:
    """Answers torchmetrics' requests for the states of all processes, in order.

    Args:
        states: for each state of a metric, those of all processes.
    """

    def __init__(self, states: list[list[Tensor]]) -> None:
        self.states = states

    def __call__(self, state: Tensor, group: Any) -> list[Tensor]:
        if not self.states:  # A metric inside another one may be computed more than once.
            return gather_all_tensors(state, group)
        return [values.to(state.device) for values in self.states.pop(0)]
