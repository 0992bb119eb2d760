"""Complete optimizer step in one compiled function: forward, loss, backward and update.

This is ``model.compile: step``, for nets so small that calling torch takes longer than computing.
The state of the optimizer keeps the form of ``torch.optim``, so checkpoints are the same with and
without it. To remove the feature, delete this file and its uses in ``multi_step`` (the branch on
``compiled_step``), ``steps_per_execution`` and ``models/base.py``.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import SGD, Adam, AdamW, Optimizer

from proj.engine.callbacks.multi_step import StepResult, eager_step
from proj.schema import Batch

# The kind of gradient clipping, "norm" or "value", and the limit.
Clip: TypeAlias = tuple[str, float]

# The tensors that each optimizer keeps for a parameter.
STATE_KEYS = {
    SGD: ("momentum_buffer",),
    Adam: ("step", "exp_avg", "exp_avg_sq"),
    AdamW: ("step", "exp_avg", "exp_avg_sq"),
}
UNSUPPORTED_OPTIONS = ("amsgrad", "maximize", "differentiable", "dampening")

# Guards and asserts take half of the time, and nothing that they check can change during training.
# With `fallback_random`, dropout draws the same numbers as in eager steps.
COMPILE_OPTIONS: dict[str, Any] = {
    "guard_filter_fn": lambda guards: [False] * len(guards),
    "size_asserts": False,
    "alignment_asserts": False,
    "fallback_random": True,
}

# Steps for the comparison of compiled and eager steps, and the measurements of the step's time.
COMPARED_STEPS = 2
TIMINGS, STEPS_PER_TIMING = 5, 20
# A gradient smaller than this share of the largest one may be rounding error only.
NEGLIGIBLE = 1e-3


class NotCompiled(Exception):
    """The reason why steps are made eagerly."""


class CompiledStep:
    """Optimizer steps on batches of one size, compiled before training.

    Compiled steps are compared with eager steps, on copies of the model and the optimizer.

    Args:
        model: a ``Model`` with its net built and on its device.
        optimizer: its optimizer.
        clip: how gradients are clipped before the update: ``norm`` or ``value``, and the limit.
        batch: an example. Batches of another size need eager steps.

    Raises:
        NotCompiled: the optimizer has no compiled form, torch cannot compile the net, or compiled
            and eager steps differ.

    Attributes:
        rows: rows of a batch.
        seconds: time of one step.
        gradient_norm: norm of the gradients of the last step, before clipping.
    """

    def __init__(self, model: Any, optimizer: Optimizer, clip: Clip | None, batch: Batch) -> None:
        _check_supported(optimizer, batch)
        self.rows, self.gradient_norm = len(batch.row), torch.zeros(())
        self.function = _compile(model, optimizer, clip)
        eager, compiled = (copy.deepcopy((model, optimizer)) for _ in range(2))
        with torch.random.fork_rng(), _full_precision():
            expected = [_observed_eager_step(*eager, clip, batch) for _ in range(COMPARED_STEPS)]
        # The weight is a constant unless it is a tensor that the compiled function returns.
        self.weight = expected[-1].weight
        self.bind(*compiled)
        try:
            with torch.random.fork_rng(), _full_precision():
                outputs = [self(batch)[0] for _ in range(COMPARED_STEPS)]
        except Exception as error:
            # The compiler raises many kinds. An error of the net itself is raised again by the
            # first eager step.
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            raise NotCompiled(
                f"torch cannot compile the net ({reason}; set TORCH_LOGS=graph_breaks for details)"
            ) from error
        for step, output in zip(expected, outputs, strict=True):
            _check_close("the outputs", step.outputs, output)
        _check_same_update(model, eager, compiled, expected)
        self.seconds = min(self._measure(batch) for _ in range(TIMINGS))

    def bind(self, model: Any, optimizer: Optimizer) -> None:
        """Work on the tensors of this model and optimizer from now on.

        Missing optimizer state is created as the optimizer's first step would create it.
        """
        self.optimizer = optimizer
        names = {parameter: name for name, parameter in model.named_parameters()}
        self.parameters: dict[str, Tensor] = {}
        self.state: dict[str, dict[str, Tensor]] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = names[parameter]
                self.parameters[name] = parameter.detach()
                self.state[name] = _optimizer_state(optimizer, group, parameter)
        self.buffers = dict(model.net.named_buffers(prefix="net"))
        self.settings: list[list[float]] = []

    def _measure(self, batch: Batch) -> float:
        """Return the mean time of a step in seconds."""
        start = time.perf_counter()
        for _ in range(STEPS_PER_TIMING):
            loss = self(batch)[1]
        loss.item()  # Wait for the device.
        return (time.perf_counter() - start) / STEPS_PER_TIMING

    def __call__(self, batch: Batch) -> StepResult:
        """Make a step; return raw outputs, mean loss and its weight, as ``Model.forward_loss``."""
        settings = [_settings(group) for group in self.optimizer.param_groups]
        if settings != self.settings:  # A scheduler has changed them.
            self.settings = settings
            self.settings_tensor = torch.tensor(
                settings, dtype=torch.float64, device=batch.row.device
            )
        outputs, loss, weights, self.gradient_norm = self.function(
            self.parameters, self.buffers, self.state, self.settings_tensor, batch
        )
        return outputs, loss, weights[0] if weights else self.weight


def _check_supported(optimizer: Optimizer, batch: Batch) -> None:
    """Raise NotCompiled unless there is a compiled form of the optimizer for this device."""
    name, device = type(optimizer).__name__, batch.row.device.type
    if type(optimizer) not in STATE_KEYS:
        raise NotCompiled(f"{name} has no compiled form; SGD, Adam and AdamW have one")
    for option in UNSUPPORTED_OPTIONS:
        if any(group.get(option) for group in optimizer.param_groups):
            raise NotCompiled(f"{name} with {option} has no compiled form")
    if device not in ("cpu", "cuda"):
        raise NotCompiled(f"compiled steps support CPUs and CUDA only, not {device}")


def _optimizer_state(
    optimizer: Optimizer, group: dict[str, Any], parameter: Tensor
) -> dict[str, Tensor]:
    """Return the optimizer's tensors for a parameter; create those that are missing."""
    state = optimizer.state[parameter]
    for key in _state_keys(optimizer, group):
        if state.get(key) is not None:
            continue
        if key == "step":
            on_device = group.get("fused") or group.get("capturable")
            state[key] = torch.zeros((), device=parameter.device if on_device else "cpu")
        else:
            state[key] = torch.zeros_like(parameter).detach()
    return {key: state[key] for key in _state_keys(optimizer, group)}


def _state_keys(optimizer: Optimizer, group: dict[str, Any]) -> tuple[str, ...]:
    return STATE_KEYS[type(optimizer)] if group.get("momentum", True) else ()


def _settings(group: dict[str, Any]) -> list[float]:
    """Return the settings that a scheduler may change, in the order that the updates expect.

    Adam: learning rate, weight decay, betas, epsilon. SGD: learning rate, weight decay, momentum.
    """
    if "betas" in group:
        return [float(group["lr"]), group["weight_decay"], *group["betas"], group["eps"]]
    return [float(group["lr"]), group["weight_decay"], group["momentum"]]


@contextmanager
def _full_precision() -> Iterator[None]:
    """Switch TensorFloat-32 off, because its rounding looks like a difference.

    The compiled function reads the setting at each call.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


# The compiled function


class _Loss(nn.Module):
    """The model's loss as a forward method, for ``functional_call``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Any:
        return self.model.forward_loss(batch, "train")


def _compile(model: Any, optimizer: Optimizer, clip: Clip | None) -> Callable[..., Any]:
    """Return the compiled step: a function of tensors that holds only frozen tensors."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [
        [names[parameter] for parameter in group["params"]] for group in optimizer.param_groups
    ]
    switches = [
        {key: bool(group.get(key)) for key in ("weight_decay", "momentum", "nesterov")}
        for group in optimizer.param_groups
    ]
    update = _sgd if type(optimizer) is SGD else _adamw if type(optimizer) is AdamW else _adam
    module = _Loss(model)

    def forward_loss(
        parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Batch
    ) -> Any:
        tensors = {f"model.{name}": value for name, value in (parameters | buffers).items()}
        outputs, loss, weight = functional_call(module, tensors, (batch,))
        return loss, (outputs, weight) if isinstance(weight, Tensor) else (outputs,)

    def step(parameters: Any, buffers: Any, state: Any, settings: Tensor, batch: Batch) -> Any:
        gradients, (loss, (outputs, *weights)) = grad_and_value(forward_loss, has_aux=True)(
            parameters, buffers, batch
        )
        with torch.no_grad():
            squares = (gradient.square().sum() for gradient in gradients.values())
            norm = sum(squares, torch.zeros(())).sqrt()
            for group, switch, numbers in zip(groups, switches, settings, strict=True):
                for name in group:
                    gradient = _clipped(gradients[name], norm, clip)
                    update(parameters[name], gradient, state[name], numbers, **switch)
        return outputs.detach(), loss.detach(), weights, norm

    # Dynamo caches compiled code by code object. Without guards it would use the code of another
    # model, so each model gets a code object of its own.
    step.__code__ = step.__code__.replace()
    # A copy, because torch.compile removes entries from the dict.
    return torch.compile(step, fullgraph=True, options=dict(COMPILE_OPTIONS))


def _clipped(gradient: Tensor, norm: Tensor, clip: Clip | None) -> Tensor:
    """Return the gradient as ``clip_grad_norm_`` or ``clip_grad_value_`` would clip it."""
    if clip is None:
        return gradient
    kind, limit = clip
    if kind == "norm":
        return gradient * (limit / (norm + 1e-6)).clamp(max=1.0)
    return gradient.clamp(-limit, limit)


# The updates, as in the documentation of torch.optim. `p.add_(a @ b, alpha=c)` is avoided because
# Inductor drops alpha.


def _sgd(p: Tensor, g: Tensor, state: dict[str, Tensor], numbers: Tensor, **switch: bool) -> None:
    lr, weight_decay, momentum = numbers.to(p.dtype)
    g = g + weight_decay * p if switch["weight_decay"] else g
    if switch["momentum"]:
        buffer = state["momentum_buffer"]
        buffer.mul_(momentum).add_(g)
        g = g + momentum * buffer if switch["nesterov"] else buffer
    p.sub_(lr * g)


def _adam(p: Tensor, g: Tensor, state: dict[str, Tensor], numbers: Tensor, **switch: bool) -> None:
    _, weight_decay, *_ = numbers.to(p.dtype)
    _adam_update(p, g + weight_decay * p if switch["weight_decay"] else g, state, numbers)


def _adamw(p: Tensor, g: Tensor, state: dict[str, Tensor], numbers: Tensor, **switch: bool) -> None:
    if switch["weight_decay"]:
        p.mul_((1 - numbers[0] * numbers[1]).to(p.dtype))
    _adam_update(p, g, state, numbers)


def _adam_update(p: Tensor, g: Tensor, state: dict[str, Tensor], numbers: Tensor) -> None:
    # The numbers are float64, because 1 - beta2 has few digits in float32.
    lr, _, beta1, beta2, epsilon = numbers
    state["step"].add_(1)
    correction1, correction2 = [1 - beta ** state["step"].double() for beta in (beta1, beta2)]
    state["exp_avg"].add_((1 - beta1).to(p.dtype) * (g - state["exp_avg"]))
    state["exp_avg_sq"].mul_(beta2.to(p.dtype)).add_((1 - beta2).to(p.dtype) * g * g)
    root = state["exp_avg_sq"].sqrt() / correction2.sqrt().to(p.dtype)
    denominator = root + epsilon.to(p.dtype)
    p.sub_((lr / correction1).to(p.dtype) * (state["exp_avg"] / denominator))


# The comparison with eager steps


class _EagerStep(NamedTuple):
    """The results of an eager step."""

    outputs: Tensor
    weight: Tensor | float
    # The gradients after clipping, by parameter.
    gradients: dict[str, Tensor]


def _observed_eager_step(
    model: Any, optimizer: Optimizer, clip: Clip | None, batch: Batch
) -> _EagerStep:
    """Make an eager step; raise NotCompiled if a trained parameter gets no gradient."""

    def clip_gradients(optimizer: Optimizer) -> None:
        if clip is not None:
            kind, limit = clip
            (clip_grad_norm_ if kind == "norm" else clip_grad_value_)(model.parameters(), limit)

    outputs, _, weight = eager_step(model, batch, optimizer, clip_gradients)
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                raise NotCompiled(f"{name} gets no gradient")
            gradients[name] = parameter.grad.clone()
    return _EagerStep(outputs.detach(), weight, gradients)


def _check_same_update(
    before: nn.Module,
    eager: tuple[Any, Optimizer],
    compiled: tuple[Any, Optimizer],
    steps: list[_EagerStep],
) -> None:
    """Raise NotCompiled unless both kinds of steps changed model and optimizer equally.

    Args:
        before: the model before any step.
        eager: model and optimizer after the eager steps.
        compiled: model and optimizer after the compiled steps.
        steps: the results of the eager steps.
    """
    (eager_model, eager_optimizer), (compiled_model, compiled_optimizer) = eager, compiled
    largest = max(gradient.abs().max().item() for gradient in steps[0].gradients.values())
    negligible = NEGLIGIBLE * largest
    for name, parameter in eager_model.named_parameters():
        if not parameter.requires_grad:
            continue
        twin = compiled_model.get_parameter(name)
        for key, value in eager_optimizer.state[parameter].items():
            if value is not None:
                scale = negligible**2 if key.endswith("sq") else negligible
                twin_value = compiled_optimizer.state[twin][key]
                _check_close(f"{key} of {name}", value, twin_value, scale)
        # Adam makes full steps even with a gradient that is rounding error only, so only entries
        # with clear gradients in all steps are compared.
        clear = torch.stack([step.gradients[name].abs() for step in steps]).amin(0) > negligible
        start = before.get_parameter(name)
        change, twin_change = (parameter - start)[clear], (twin - start)[clear]
        _check_close(f"the change of {name}", change, twin_change, tolerance=0.01)
    for name, buffer in eager_model.net.named_buffers():
        twin_buffer = compiled_model.net.get_buffer(name)
        _check_close(f"the buffer {name}", buffer, twin_buffer, 1e-6)


def _check_close(
    name: str, eager: Tensor, compiled: Tensor, scale: float = 0.0, tolerance: float = 0.001
) -> None:
    """Raise NotCompiled if two tensors differ by more than ``tolerance`` of their largest number.

    If the largest number is below ``scale``, the difference is relative to ``scale``.
    """
    if not eager.numel():
        return
    difference = (eager.float() - compiled.float()).abs().max()
    size = eager.float().abs().max().clamp(min=scale)
    if not difference <= tolerance * size:
        raise NotCompiled(
            f"{name} of compiled and eager steps differ, by {difference.item():.2g} "
            f"of {size.item():.2g}"
        )
