"""Tell the rows of a table apart: equal labels are followed by the config values that differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from gda.report.records import Method, Run

# What never changes a result, and so never tells two groups apart.
NOT_THE_METHOD = (
    "seed", "study", "cluster", "tracking", "hydra", "paths", "run", "check", "experiment", "sweep",
    "workers", "logging", "report",
)  # fmt: skip
# What belongs to the method; the rest of the config is the setting it was tried under.
THE_METHOD = ("distiller", "plugin", "alignment", "teacher", "ground_truth", "terms")
MOST_VALUES = 3
UNSET = "unset"

Leaves = Mapping[str, str]


def distinct_labels(methods: Sequence[Method], runs: Iterable[Run]) -> dict[str, str]:
    """Name the methods of one table so that no two share a name.

    Args:
        methods: the methods of the table.
        runs: their runs; the resolved ``config.yaml`` of one run per group is read, and only
            when labels collide or the table holds runs under different settings.

    Returns:
        group -> label, for example ``kd (terms.kd.temperature=2)``.
    """
    paths: dict[str, list[Path]] = defaultdict(list)
    for run in runs:
        paths[run.method.group].append(run.path / "config.yaml")
    read: dict[str, Leaves] = {}

    def config(method: Method) -> Leaves:
        if method.group not in read:
            read[method.group] = _first_readable(paths[method.group])
        return read[method.group]

    said: dict[str, dict[str, str]] = {method.group: {} for method in methods}
    alike = defaultdict(list)
    for method in methods:
        if method.ground_truth != "labels" and "label-free" not in method.label:
            said[method.group]["ground_truth"] = method.ground_truth
        alike[method.label, method.ground_truth].append(method)
    settings = _setting_leaves(methods, config)
    for method in methods:
        said[method.group] |= {leaf: config(method).get(leaf, UNSET) for leaf in settings if config(method)}
    for same in alike.values():
        if len(same) > 1 and all(config(method) for method in same):
            for leaf in _differing([config(method) for method in same]):
                for method in same:
                    said[method.group].setdefault(leaf, config(method).get(leaf, UNSET))
    _share_with_aligned(methods, said)
    labels = {method.group: _compose(method, said[method.group]) for method in methods}
    return _with_group_where_equal(methods, labels)


def read_leaves(path: Path) -> Leaves:
    """Flatten a YAML file to ``a.b.c`` -> value as text; empty when it cannot be read."""
    from omegaconf import OmegaConf  # only needed when labels collide

    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception:  # a torn file may break YAML, OmegaConf or UTF-8: the group hash tells rows apart then
        return {}
    leaves: dict[str, str] = {}
    _flatten("", tree, leaves)
    return {leaf: value for leaf, value in leaves.items() if leaf.split(".")[0] not in NOT_THE_METHOD}


def _flatten(prefix: str, node: object, leaves: dict[str, str]) -> None:
    if isinstance(node, Mapping):
        for key, child in node.items():
            _flatten(f"{prefix}.{key}" if prefix else str(key), child, leaves)
    elif node is None or isinstance(node, bool):
        leaves[prefix] = {None: "null", True: "true", False: "false"}[node]  # as one types them
    else:
        leaves[prefix] = str(node)


def _first_readable(paths: Iterable[Path]) -> Leaves:
    return next((leaves for path in paths if (leaves := read_leaves(path))), {})


def _setting_leaves(methods: Sequence[Method], config: Callable[[Method], Leaves]) -> list[str]:
    """Leaves outside the method that differ between rows with different plain baselines.

    One recipe name can cover two settings (`epochs=60` on the command line): then even rows
    with different labels are not alike in all but the method, and the label must show it.
    """
    one_each: dict[str, Method] = {}
    for method in sorted(methods, key=lambda method: not method.is_vanilla):
        if method.vanilla_group is not None:
            one_each.setdefault(method.vanilla_group, method)
    if len(one_each) < 2:
        return []
    configs = [leaves for method in one_each.values() if (leaves := config(method))]
    return [leaf for leaf in _differing(configs) if leaf.split(".")[0] not in THE_METHOD]


def _differing(configs: Sequence[Leaves]) -> list[str]:
    """Leaves that do not have the same value in all configs, in the order of the files."""
    leaves = dict.fromkeys(leaf for config in configs for leaf in config)
    return [leaf for leaf in leaves if len({config.get(leaf, UNSET) for config in configs}) > 1]


def _share_with_aligned(methods: Sequence[Method], said: dict[str, dict[str, str]]) -> None:
    """Give an aligned row the values its twin is told apart by: it has them too, alignment aside."""
    for method in methods:
        if method.twin_group in said:
            for leaf, value in said[method.twin_group].items():
                if leaf.split(".")[0] != "alignment":
                    said[method.group].setdefault(leaf, value)


def _compose(method: Method, said: Mapping[str, str]) -> str:
    if not said:
        return method.label
    # The label already names the distiller.
    values = [f"{leaf.removeprefix('distiller.')}={value}" for leaf, value in said.items()]
    if len(values) > MOST_VALUES:
        values = [*values[:MOST_VALUES], f"{len(values) - MOST_VALUES} more, group {method.short_group}"]
    return f"{method.label} ({', '.join(values)})"


def _with_group_where_equal(methods: Sequence[Method], labels: dict[str, str]) -> dict[str, str]:
    """Where configs are lost, or differ by a weight file's hash alone, the group hash must do."""
    taken = list(labels.values())
    return {
        method.group: f"{label} [group {method.short_group}]" if taken.count(label) > 1 else label
        for method in methods
        for label in (labels[method.group],)
    }
