"""A forward pass without the arithmetic: it finds shapes, leaves an autograd graph and counts work.

Convolutions and matrix products give zeros of the right shape; the rest is computed as always. That
takes milliseconds where a real pass takes seconds, works on any device, and needs none of the compiler
that the ``meta`` device imports, which alone takes a second.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gda.errors import UserError


class SkipInit(TorchFunctionMode):
    """Within the block, nothing is drawn into parameters: they hold whatever memory held.

    For large models of foreign code the ``meta`` device is the better choice; for the models of the zoo
    its first use alone takes longer than all the rest.
    """

    _draws = ("normal_", "uniform_", "kaiming_uniform_")

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Leaves a parameter as it is where ``function`` would draw into it."""
        options = kwargs or {}
        if getattr(function, "__name__", "") in self._draws:
            drawn = args[0] if args else options.get("tensor")
            # Not other tensors: truncated distributions draw those until the values suit.
            if isinstance(drawn, nn.Parameter):
                return drawn
        return function(*args, **options)


def dry_run(model: nn.Module, image_size: int, images: int = 2) -> int:
    """Passes black images through a model in evaluation mode, and leaves no trace.

    Hooks run as always; what they see has the right shape and place in the autograd graph, not the right
    values. Running statistics, gradients, the training mode and torch's random state stay as they were.

    Args:
        model: The model, unwrapped, on any device, ``meta`` included; compiled ones run uncompiled.
        image_size: Height and width of the images in pixels.
        images: Number of images.

    Returns:
        Multiply-accumulate operations of convolutions and matrix products (linear layers, attention) for
        all the images.

    Raises:
        UserError: The model can't take images of this size.
    """
    reference = next(iter(model.parameters()), torch.empty(0))
    dtype = reference.dtype if reference.dtype.is_floating_point else None
    devices = [reference.device] if reference.device.type == "cuda" else []
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # also turns gradients on
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(_evaluating(model))
        stack.enter_context(_uncompiled(model))
        stack.enter_context(_plain_attention())
        # The graph is only looked at: what a backward pass would need may be forgotten.
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(lambda saved: None, lambda none: none))
        counting = stack.enter_context(_ShapesOnly())
        # A frozen model must leave a graph, too; and torch fuses attention away where none is asked for.
        size = (images, 3, image_size, image_size)
        try:
            black = torch.zeros(size, device=reference.device, dtype=dtype, requires_grad=True)
            model(black)
        except (RuntimeError, ValueError, AssertionError) as error:  # torch and timm raise all three
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"the model can't take images of {image_size} pixels: {reason}") from error
    return counting.macs


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
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


def _plain_attention() -> AbstractContextManager[Any]:
    """Makes attention of matrix products; the fused kernels of each device hide them."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> tuple[Tensor, int]:
    sizes, kernel = x.shape[2:], weight.shape[2:]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if transposed:
        channels = weight.shape[1] * groups
        steps = zip(sizes, stride, padding, reach, output_padding, strict=True)
        spatial = [(n - 1) * s - 2 * p + r + more + 1 for n, s, p, r, more in steps]
    else:
        channels = weight.shape[0]
        spatial = [
            (n + 2 * p - r - 1) // s + 1 for n, s, p, r in zip(sizes, stride, padding, reach, strict=True)
        ]
    if x.shape[1] != (weight.shape[0] if transposed else weight.shape[1] * groups):
        raise RuntimeError(f"a convolution with weights {tuple(weight.shape)} meets {x.shape[1]} channels")
    if min(spatial) < 1:
        raise RuntimeError(f"a convolution of {tuple(kernel)} leaves nothing of a map of {tuple(sizes)}")
    out = x.new_zeros((x.shape[0], channels, *spatial))
    # Each value that comes in (transposed) or goes out meets one kernel of its group.
    return out, (x if transposed else out).numel() * weight[0].numel()


def _product(a: Tensor, b: Tensor) -> tuple[Tensor, int]:
    if a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        raise RuntimeError(f"shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be multiplied")
    out = a.new_zeros((*a.shape[:-1], b.shape[-1]))
    return out, out.numel() * a.shape[-1]


def _added_product(added: Tensor, a: Tensor, b: Tensor, **scales: float) -> tuple[Tensor, int]:
    return _product(a, b)


_aten = torch.ops.aten
_RULES: dict[Any, Callable[..., tuple[Tensor, int]]] = {
    _aten.convolution: _convolution,
    _aten.mm: _product,
    _aten.bmm: _product,
    _aten.addmm: _added_product,
    _aten.baddbmm: _added_product,
}


class _Dispatch:
    """Apart from the mode itself, whose own method torch guards in a way that imports its compiler."""

    macs = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        rule = _RULES.get(operator.overloadpacket)
        if rule is None:
            return operator(*args, **(kwargs or {}))
        out, macs = rule(*args, **(kwargs or {}))
        self.macs += macs
        return out


class _ShapesOnly(_Dispatch, TorchDispatchMode):
    """Replaces convolutions and matrix products by zeros, and counts their work."""
