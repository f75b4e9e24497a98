"""Captures what modules put out or get, with hooks, so that any model can be tapped.

    taps = features(model, ["stage2", "layer3.0", "layer3.2.relu2:input", "pooled"])
    logits = model(images)
    maps = taps.collect()["stage2"]

A tap is named by a module path as in ``model.named_modules()``, by such a path with ``:input``, or
by a name that holds for every model: ``stage1`` ... ``stage4``, ``stage1:pre`` ... and ``pooled``
(see :mod:`gda.models.layout`). Wrappers (DDP, ``torch.compile``, EMA) are looked through.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gda.errors import UserError
from gda.models.layout import INPUT, Layout, layout_of
from gda.suggestions import did_you_mean


@dataclass(frozen=True)
class TapDescription:
    """What a tap gives, known from one dry forward pass.

    Attributes:
        path: Module path; ends in ``:input`` where the module's input is meant.
        shape: Shape without the batch: ``(channels, height, width)`` of a map, ``(tokens, width)`` of
            token maps, ``(width,)`` of a vector. Maps of models that compute channels-last
            (``model.output_fmt == "NHWC"``) are ``(height, width, channels)``, as they come.
        stride: Input pixels per pixel of the map (per token and direction of token maps); ``None``
            for a vector.
        activated: Whether the values come out of an activation function, at most pooled, reshaped or
            dropped out since.
    """

    path: str
    shape: tuple[int, ...]
    stride: float | None
    activated: bool


class FeatureTaps:
    """Remembers what was tapped in the last forward pass of a model.

    The hooks stay until :meth:`remove` or the end of a ``with`` block. Without names there are none, and
    nothing is spent. A deep copy of the model, such as its moving average, is not tapped. Use
    :func:`features` to make one: it also tells ``torch.compile`` to look at hooks.

    Args:
        model: The model; its forward pass stays as it is.
        names: Names of the taps.

    Attributes:
        features: What was tapped, by name, with gradient where there is one. The tensors hold on to
            the autograd graph; :meth:`collect` lets go of them.

    Raises:
        UserError: The model has no such module, or no such stage.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.features: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        # Foreign models compute in place: what a module put out may be overwritten by the next one.
        copied = not isinstance(getattr(unwrap(model), "layout", None), Layout)
        for name, (module, of_input) in _resolve(model, names).items():
            kind = _InputTap if of_input else _OutputTap
            self._handles.append(kind(self.features, name, copied).on(module))

    def collect(self) -> dict[str, Tensor]:
        """Returns what the last forward pass left, and forgets it."""
        collected = dict(self.features)
        self.features.clear()
        return collected

    def remove(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def features(model: nn.Module, names: Sequence[str]) -> FeatureTaps:
    """Taps a model: zoo, timm, torchvision or any other, wrapped or not.

    Args:
        model: The model.
        names: What to tap; see the module's description.

    Raises:
        UserError: The model has no such module, or no such stage.
    """
    if names:
        # Unless it is told to, the compiler does not look at hooks: models of one class, one of them
        # tapped, would share one compiled graph. Importing it costs what the first optimiser does anyway.
        import torch._dynamo.config

        torch._dynamo.config.skip_nnmodule_hook_guards = False
    return FeatureTaps(model, names)


def describe(model: nn.Module, names: Sequence[str], image_size: int) -> dict[str, TapDescription]:
    """Finds shape and stride of taps by one forward pass on two black images, and leaves no trace.

    Running statistics, gradients, the training mode and torch's random state stay as they were.

    Args:
        model: The model, on any device, ``meta`` included; compiled ones are run uncompiled.
        names: Taps as in :func:`features`.
        image_size: Height and width of the images.

    Returns:
        What each tap gives, by name.

    Raises:
        UserError: As :func:`features`, or the model can't take images of this size, or a tapped
            module gives no tensor or is not reached.
    """
    inner = unwrap(model)
    paths = tap_paths(inner, names)
    reference = next(iter(inner.parameters()), torch.empty(0))
    kind = reference.dtype if reference.dtype.is_floating_point else None
    images = torch.zeros(2, 3, image_size, image_size, device=reference.device, dtype=kind)
    images.requires_grad_()  # a frozen model must leave a graph, too
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_evaluating(inner))
        stack.enter_context(_uncompiled(inner))
        taps = stack.enter_context(FeatureTaps(inner, names))
        try:
            inner(images)
        except (RuntimeError, ValueError, AssertionError) as error:  # torch and timm raise all three
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"the model can't take images of {image_size} pixels: {reason}") from error
        found = taps.collect()
    channels_last = getattr(inner, "output_fmt", None) == "NHWC"
    descriptions = {}
    for name in names:
        if not isinstance(found.get(name), Tensor):
            what = "is not reached by a forward pass" if name not in found else "puts out no tensor"
            raise UserError(f"the module {paths[name]!r} can't be tapped: it {what}")
        shape = tuple(found[name].shape[1:])
        descriptions[name] = TapDescription(
            paths[name], shape, _stride(shape, image_size, channels_last), _is_activated(found[name].grad_fn)
        )
    return descriptions


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the model inside DDP, ``torch.compile`` and averaging wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model,
            nn.parallel.DistributedDataParallel | nn.DataParallel | torch.optim.swa_utils.AveragedModel,
        ):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def tap_paths(model: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Returns the module path behind each tap name, with ``:input`` where the input is meant.

    Args:
        model: An unwrapped model.
        names: Taps as in :func:`features`.

    Raises:
        UserError: The model has no such module, or no such stage.
    """
    modules = dict(model.named_modules())
    known = layout_of(model).names()
    paths = {}
    for name in names:
        path = known.get(name, name)
        if path.removesuffix(INPUT) not in modules:
            raise UserError(_no_such_tap(name, modules, known))
        paths[name] = path
    return paths


class _Tap:
    """A hook that writes nowhere once its module has been deep-copied: a copy is not tapped."""

    def __init__(self, features: dict[str, Tensor] | None, name: str, copied: bool) -> None:
        self.features, self.name, self.copied = features, name, copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(None, self.name, self.copied)

    def keep(self, value: Any) -> None:
        if self.features is not None:
            self.features[self.name] = value.clone() if self.copied and isinstance(value, Tensor) else value


class _OutputTap(_Tap):
    def on(self, module: nn.Module) -> RemovableHandle:
        return module.register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.keep(output)


class _InputTap(_Tap):
    def on(self, module: nn.Module) -> RemovableHandle:
        return module.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.keep(inputs[0])


def _resolve(model: nn.Module, names: Sequence[str]) -> dict[str, tuple[nn.Module, bool]]:
    if not names:
        return {}
    inner = unwrap(model)
    modules = dict(inner.named_modules())
    return {
        name: (modules[path.removesuffix(INPUT)], path.endswith(INPUT))
        for name, path in tap_paths(inner, names).items()
    }


def _no_such_tap(name: str, modules: Mapping[str, nn.Module], known: Mapping[str, str]) -> str:
    plain, _, rest = name.partition(":")
    if plain.removeprefix("stage").isdigit():
        named = ", ".join(known) or "none"
        what = f"{plain}:{rest}" if rest else plain
        return f"the model has no {what}; of the names that hold for every model, it has {named}"
    return f"the model has no module {name!r}; {did_you_mean(plain, [path for path in modules if path])}"


@contextmanager
def _evaluating(model: nn.Module):  # type: ignore[no-untyped-def]
    """Evaluation mode within the block; afterwards every module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _uncompiled(model: nn.Module) -> AbstractContextManager[Any]:
    """Keeps a compiled model from compiling anew; torch's compiler takes seconds to import."""
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _stride(shape: tuple[int, ...], image_size: int, channels_last: bool) -> float | None:
    if len(shape) == 3:
        return image_size / (shape[0] if channels_last else shape[1])
    if len(shape) == 2:  # a class token or two hardly change the root
        return image_size / max(1, int(shape[0] ** 0.5))
    return None


# Nodes of the autograd graph that keep the sign of what comes in.
_PASSES = (
    *("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "Mean", "Dropout", "NativeDropout"),
    *(
        "View",
        "Reshape",
        "Unsafe",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Permute",
        "Clone",
        "Alias",
        "ToCopy",
    ),
)
_ACTIVATIONS = (
    *("Relu", "LeakyRelu", "Elu", "Gelu", "Silu", "Mish"),
    *("Hardtanh", "Hardswish", "Sigmoid", "Tanh"),
)


def _is_activated(node: Any) -> bool:
    while node is not None:
        name = type(node).__name__
        if name.startswith(_ACTIVATIONS):
            return True
        if not name.startswith(_PASSES) or not node.next_functions:
            return False
        node = node.next_functions[0][0]
    return False
