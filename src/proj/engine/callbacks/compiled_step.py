"""A whole optimizer step in one compiled function: forward, loss, backward and update (``model.compile: step``).

For a net so small that calling torch takes longer than computing. The optimizer's state stays in torch.optim's own form, so
checkpoints are those of a run without it. To do without: delete this file and what names it in ``blocks``, ``base`` and
``execution``.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import SGD, Adam, AdamW, Optimizer

from proj.schema import Batch

STATE = {
    SGD: ("momentum_buffer",),
    Adam: ("step", "exp_avg", "exp_avg_sq"),
    AdamW: ("step", "exp_avg", "exp_avg_sq"),
}
OFF = (
    "amsgrad",
    "maximize",
    "differentiable",
    "dampening",
)  # options of optimizers that have to be


class NotCompiled(Exception):
    """Why steps are made eagerly."""


class _Loss(nn.Module):
    """The model's loss as a forward, for ``functional_call``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Any:
        return self.model.forward_loss(batch, "train")


class CompiledStep:
    """Steps on batches of one size. Made before training, by a comparison with eager steps on copies of everything.

    Args:
        model: built, with its optimizer and on its device.
        clip: gradients are clipped before the update: ``norm`` or ``value``, and at which.
        batch: an example; other sizes than this are for eager steps.

    Raises:
        NotCompiled: the optimizer has no compiled form, torch cannot compile the net, or both steps differ.

    Attributes:
        seconds: that one step takes.
        gradient_norm: of the last step, before clipping.
    """

    def __init__(
        self, model: Any, optimizer: Optimizer, clip: tuple[str, float] | None, batch: Batch
    ) -> None:
        if type(optimizer) not in STATE:
            raise NotCompiled(
                f"{type(optimizer).__name__} has no compiled form, SGD, Adam and AdamW have one"
            )
        if on := [name for name in OFF for group in optimizer.param_groups if group.get(name)]:
            raise NotCompiled(f"{type(optimizer).__name__} with {on[0]} has no compiled form")
        if batch.row.device.type not in ("cpu", "cuda"):
            raise NotCompiled(f"that is written for CPUs and CUDA, not for {batch.row.device.type}")
        self.rows, self.gradient_norm = len(batch.row), torch.zeros(())
        self.function = _whole(model, optimizer, clip)
        eager, compiled = (copy.deepcopy((model, optimizer)) for _ in range(2))
        with torch.random.fork_rng(), _full_precision():
            expected = [_eager_step(*eager, clip, batch) for _ in range(2)]
        self.weight = expected[-1].weight  # a tensor where it hangs on more than the number of rows
        self.bind(*compiled)
        try:
            with torch.random.fork_rng(), _full_precision():
                outputs = [self(batch)[0] for _ in range(2)]
        except Exception as error:  # of the compiler, of many kinds; an error of the net itself comes again in eager mode
            said = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            raise NotCompiled(
                f"torch cannot ({said}; TORCH_LOGS=graph_breaks tells more)"
            ) from error
        for step, output in zip(expected, outputs, strict=True):
            _check("the outputs", step.outputs, output)
        _compare(model, eager, compiled, expected)
        self.seconds = min(self._seconds(batch) for _ in range(5))

    def bind(self, model: Any, optimizer: Optimizer) -> None:
        """Work on these tensors from now on. State that is missing is made as the optimizer's first step would make it."""
        self.optimizer = optimizer
        names = {parameter: name for name, parameter in model.named_parameters()}
        self.parameters: dict[str, Tensor] = {}
        self.state: dict[str, dict[str, Tensor]] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = optimizer.state[parameter]
                for key in _state_of(optimizer, group):
                    if state.get(key) is None:
                        there = (
                            parameter.device
                            if group.get("fused") or group.get("capturable")
                            else "cpu"
                        )
                        state[key] = (
                            torch.zeros((), device=there)
                            if key == "step"
                            else torch.zeros_like(parameter).detach()
                        )
                self.parameters[names[parameter]] = parameter.detach()
                self.state[names[parameter]] = {
                    key: state[key] for key in _state_of(optimizer, group)
                }
        self.buffers = dict(model.net.named_buffers(prefix="net"))
        self.settings: list[list[float]] = []

    def _seconds(self, batch: Batch, steps: int = 20) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            loss = self(batch)[1]
        loss.item()  # waits for the device
        return (time.perf_counter() - start) / steps

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | float]:
        """Make a step; return raw outputs, mean loss and its weight, as ``Model.loss_of``."""
        settings = [_settings(group) for group in self.optimizer.param_groups]
        if settings != self.settings:  # a schedule has changed them
            self.settings, self.numbers = (
                settings,
                torch.tensor(settings, dtype=torch.float64, device=batch.row.device),
            )
        outputs, loss, weights, self.gradient_norm = self.function(
            self.parameters, self.buffers, self.state, self.numbers, batch
        )
        return outputs, loss, weights[0] if weights else self.weight


@contextmanager
def _full_precision() -> Iterator[None]:
    """Without TensorFloat-32, whose rounding looks like a difference. What is compiled asks for it at each call."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _whole(model: Any, optimizer: Optimizer, clip: tuple[str, float] | None) -> Callable[..., Any]:
    """The compiled function, of tensors only: it holds none of its own but frozen ones."""
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

    def whole(parameters: Any, buffers: Any, state: Any, numbers: Tensor, batch: Batch) -> Any:
        def forward_loss(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Batch
        ) -> Any:
            tensors = {f"model.{name}": value for name, value in (parameters | buffers).items()}
            outputs, loss, weight = functional_call(module, tensors, (batch,))
            return loss, (outputs, weight) if isinstance(weight, Tensor) else (outputs,)

        gradients, (loss, (outputs, *weights)) = grad_and_value(forward_loss, has_aux=True)(
            parameters, buffers, batch
        )
        with torch.no_grad():
            norm = sum(
                (gradient.square().sum() for gradient in gradients.values()), torch.zeros(())
            ).sqrt()
            for group, on, number in zip(groups, switches, numbers, strict=True):
                for name in group:
                    gradient = gradients[name]
                    if clip is not None and clip[0] == "norm":
                        gradient = gradient * (clip[1] / (norm + 1e-6)).clamp(max=1.0)
                    elif clip is not None:
                        gradient = gradient.clamp(-clip[1], clip[1])
                    update(parameters[name], gradient, state[name], number, **on)
        return outputs.detach(), loss.detach(), weights, norm

    # Dynamo keeps compiled code by code object, and without guards another model's would be taken for this one's.
    whole.__code__ = whole.__code__.replace()
    # Guards and asserts take half of the time, and nothing they watch can change here. Dropout is that of eager steps.
    options: dict[str, Any] = {
        "guard_filter_fn": lambda guards: [False] * len(guards),
        "size_asserts": False,
        "alignment_asserts": False,
        "fallback_random": True,
    }
    return torch.compile(whole, fullgraph=True, options=options)


def _settings(group: dict[str, Any]) -> list[float]:
    """What a schedule may change: learning rate, weight decay, and momentum or betas, with Adam's epsilon."""
    if "betas" in group:
        return [float(group["lr"]), group["weight_decay"], *group["betas"], group["eps"]]
    return [float(group["lr"]), group["weight_decay"], group["momentum"]]


def _state_of(optimizer: Optimizer, group: dict[str, Any]) -> tuple[str, ...]:
    return STATE[type(optimizer)] if group.get("momentum", True) else ()


# The updates, as torch.optim's documentation has them. Inductor drops alpha in `p.add_(a @ b, alpha=c)`: not used.


def _sgd(p: Tensor, g: Tensor, state: dict[str, Tensor], numbers: Tensor, **on: bool) -> None:
    rate, decay, momentum = numbers.to(p.dtype)
    g = g + decay * p if on["weight_decay"] else g
    if on["momentum"]:
        buffer = state["momentum_buffer"]
        buffer.mul_(momentum).add_(g)
        g = g + momentum * buffer if on["nesterov"] else buffer
    p.sub_(rate * g)


def _adam(p: Tensor, g: Tensor, state: dict[str, Tensor], numbers: Tensor, **on: bool) -> None:
    _, decay, *_ = numbers.to(p.dtype)
    _moments(p, g + decay * p if on["weight_decay"] else g, state, numbers)


def _adamw(p: Tensor, g: Tensor, state: dict[str, Tensor], numbers: Tensor, **on: bool) -> None:
    if on["weight_decay"]:
        p.mul_((1 - numbers[0] * numbers[1]).to(p.dtype))
    _moments(p, g, state, numbers)


def _moments(p: Tensor, g: Tensor, state: dict[str, Tensor], numbers: Tensor) -> None:
    rate, _, beta1, beta2, epsilon = numbers  # float64: 1 - beta2 has few digits in float32
    state["step"].add_(1)
    corrections = [1 - beta ** state["step"].double() for beta in (beta1, beta2)]
    state["exp_avg"].add_((1 - beta1).to(p.dtype) * (g - state["exp_avg"]))
    state["exp_avg_sq"].mul_(beta2.to(p.dtype)).add_((1 - beta2).to(p.dtype) * g * g)
    denominator = state["exp_avg_sq"].sqrt() / corrections[1].sqrt().to(p.dtype) + epsilon.to(
        p.dtype
    )
    p.sub_((rate / corrections[0]).to(p.dtype) * (state["exp_avg"] / denominator))


class _Step(NamedTuple):
    """What an eager step came across."""

    outputs: Tensor
    weight: Tensor | float
    gradients: dict[str, Tensor]  # by parameter, after clipping


def _eager_step(
    model: Any, optimizer: Optimizer, clip: tuple[str, float] | None, batch: Batch
) -> _Step:
    optimizer.zero_grad()
    outputs, loss, weight = model.forward_loss(batch, "train")
    loss.backward()
    if clip is not None:
        (clip_grad_norm_ if clip[0] == "norm" else clip_grad_value_)(model.parameters(), clip[1])
    optimizer.step()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if unused := [name for name, p in trained.items() if p.grad is None]:
        raise NotCompiled(f"{unused[0]} gets no gradient")
    return _Step(outputs.detach(), weight, {name: p.grad.clone() for name, p in trained.items()})


def _compare(before: nn.Module, eager: Any, compiled: Any, steps: list[_Step]) -> None:
    """Raise NotCompiled unless two steps have done the same to two models and their optimizers' states."""
    (model, optimizer), (other, others) = eager, compiled
    largest = max(gradient.abs().max().item() for gradient in steps[0].gradients.values())
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        twin = other.get_parameter(name)
        for key, value in optimizer.state[parameter].items():
            least = 1e-3 * largest  # below which a gradient may be nothing but rounding
            if value is not None:
                _check(
                    f"{key} of {name}",
                    value,
                    others.state[twin][key],
                    least**2 if key.endswith("sq") else least,
                )
        # Of a gradient that is nothing but rounding, Adam makes full steps.
        told = torch.stack([step.gradients[name].abs() for step in steps]).amin(0) > 1e-3 * largest
        change, moved = parameter - before.get_parameter(name), twin - before.get_parameter(name)
        _check(f"the change of {name}", change[told], moved[told], tolerance=0.01)
    for name, buffer in model.net.named_buffers():
        _check(f"the buffer {name}", buffer, other.net.get_buffer(name), 1e-6)


def _check(
    what: str, eager: Tensor, compiled: Tensor, least: float = 0.0, tolerance: float = 0.001
) -> None:
    """Raise NotCompiled where two tensors differ by more than ``tolerance`` of the largest number, or of ``least``."""
    if not eager.numel():
        return
    apart, size = (
        (eager.float() - compiled.float()).abs().max(),
        eager.float().abs().max().clamp(min=least),
    )
    if not apart <= tolerance * size:
        raise NotCompiled(
            f"{what} of compiled and eager steps differ, by {apart.item():.2g} of {size.item():.2g}"
        )
