"""Captures what modules put out or get, with hooks, so that any model can be tapped.

    taps = features(model, ["stage2", "layer3.0", "layer3.2.relu2:input", "pooled"])
    logits = model(images)
    maps = taps.collect()["stage2"]

A tap is named by a module path as in ``model.named_modules()``, by such a path with ``:input``, or
by a name that holds for every model: ``stage1`` ... ``stage4``, ``stage1:pre`` ... and ``pooled``
(see :mod:`gda.models.layout`). Wrappers (DDP, ``torch.compile``, EMA) are looked through.
"""

import re
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gda.errors import UserError
from gda.models.layout import FINAL, INPUT, POOLED, Layout, layout_of
from gda.suggestions import did_you_mean


class FeatureTaps:
    """Remembers what was tapped in the last forward pass of a model.

    The hooks stay until :meth:`remove` or the end of a ``with`` block. Without names there are none, and
    nothing is spent. A deep copy of the model, such as its moving average, is not tapped. Use
    :func:`features` to make one: it also tells ``torch.compile`` to look at hooks.

    Args:
        model: The model; its forward pass stays as it is.
        names: Names of the taps.

    Attributes:
        features: What was tapped, by name, with gradient where there is one; maps are ``(batch,
            channels, height, width)`` also where the model computes in another order. The tensors hold
            on to the autograd graph; :meth:`collect` lets go of them.

    Raises:
        UserError: The model has no such module, or no such stage.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.features: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        inner = unwrap(model)
        # Foreign models compute in place: what a module put out may be overwritten by the next one.
        copied = not isinstance(getattr(inner, "layout", None), Layout)
        channels_last = getattr(inner, "output_fmt", None) == "NHWC"
        for name, (module, of_input) in _resolve(inner, names).items():
            kind = _InputTap if of_input else _OutputTap
            self._handles.append(kind(self.features, name, copied, channels_last).on(module))

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

        if torch._dynamo.config.skip_nnmodule_hook_guards:
            torch._dynamo.config.skip_nnmodule_hook_guards = False
            torch._dynamo.reset()  # what was compiled so far would never look
    return FeatureTaps(model, names)


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
    if isinstance(names, str):
        raise UserError(f"taps are named in a list: [{names!r}], not {names!r}")
    modules = dict(model.named_modules())
    layout = layout_of(model)
    known = layout.names()
    paths = {}
    for name in names:
        path = known.get(name, name)
        # Where there are stages, a module that happens to be called stage1 is of another scale.
        taken = name not in known and layout.stages and _STAGE.match(name)
        if taken or path.removesuffix(INPUT) not in modules:
            raise UserError(_no_such_tap(name, modules, known))
        paths[name] = path
    return paths


_STAGE = re.compile(r"stage\d+(:|$)")


class _Tap:
    """A hook that writes nowhere once its module has been deep-copied: a copy is not tapped."""

    def __init__(
        self, features: dict[str, Tensor] | None, name: str, copied: bool, channels_last: bool
    ) -> None:
        self.features, self.name = features, name
        self.copied, self.channels_last = copied, channels_last

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(None, self.name, self.copied, self.channels_last)

    def keep(self, value: Any) -> None:
        if self.features is None:
            return
        if isinstance(value, Tensor):
            value = value.clone() if self.copied else value
            if self.name == POOLED:
                value = value.flatten(1)  # heads that are 1x1 convolutions get a map of one pixel
            elif self.channels_last and value.ndim == 4:
                value = value.permute(0, 3, 1, 2)
        self.features[self.name] = value


class _OutputTap(_Tap):
    def on(self, module: nn.Module) -> RemovableHandle:
        return module.register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.keep(output)


class _InputTap(_Tap):
    def on(self, module: nn.Module) -> RemovableHandle:
        return module.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.keep(next(iter((*inputs, *named.values())), None))


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
    if _STAGE.match(name) or name == FINAL:
        named = ", ".join(known) or "none"
        what = f"{plain}:{rest}" if rest else plain
        return f"the model has no {what}; of the names that hold for every model, it has {named}"
    nearest = did_you_mean(plain, [*known, *(path for path in modules if path and path not in known)])
    return f"the model has no module {name!r}; {nearest}"
