"""Captures the outputs of modules by their path, with hooks, so that any model can be tapped."""

from collections.abc import Sequence
from types import TracebackType

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gda.errors import UserError
from gda.suggestions import did_you_mean


class FeatureTaps:
    """Remembers what named modules of a model put out; a context manager around a forward pass.

    With no path it registers nothing and costs nothing.

    Args:
        model: The model; its forward pass stays as it is.
        paths: Module paths as in ``model.named_modules()``, e.g. ``layer3`` or ``layer3.1.relu2``.

    Attributes:
        features: Outputs of the last forward pass by path.

    Raises:
        UserError: The model has no module of that path.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str]) -> None:
        modules = dict(model.named_modules())
        for path in paths:
            if path not in modules:
                raise UserError(f"the model has no module {path!r}; {did_you_mean(path, modules)}")
        self._modules = {path: modules[path] for path in paths}
        self._handles: list[RemovableHandle] = []
        self.features: dict[str, Tensor] = {}

    def __enter__(self) -> "FeatureTaps":
        self.features = {}
        for path, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._keeper(path)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _keeper(self, path: str):  # type: ignore[no-untyped-def]  # torch's hook type is private
        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.features[path] = output

        return keep
