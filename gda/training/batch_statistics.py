"""Running statistics of batch norm, of which every process has seen other images."""

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn

from gda.ranks import rank_count


def statistics_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Returns the running means and variances of all batch norms, in a fixed order; not copies."""
    return [
        buffer
        for module in modules
        for each in module.modules()
        if isinstance(each, nn.modules.batchnorm._NormBase)
        for buffer in (each.running_mean, each.running_var)
        if buffer is not None
    ]


@torch.no_grad()
def average_statistics(modules: Iterable[nn.Module]) -> None:
    """Replaces the running statistics by their mean over all processes; nothing for one process.

    Done once an epoch, before the evaluation, as published training code does (timm's ``dist_bn=reduce``).
    """
    statistics = statistics_of(modules)
    if rank_count() == 1 or not statistics:
        return
    joined = torch.cat([each.flatten() for each in statistics])
    distributed.all_reduce(joined)
    joined.div_(rank_count())
    sizes = [each.numel() for each in statistics]
    for each, mean in zip(statistics, joined.split(sizes), strict=True):
        each.copy_(mean.view_as(each))
