"""The methods that can be chosen, read from the files in ``conf/`` and the classes that they name."""

import inspect
import pydoc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gda.distillers.term import Term

CONF = Path(__file__).resolve().parents[2] / "conf"

_NODE_KEYS = ("_target_", "_partial_", "weight")


@dataclass(frozen=True)
class Method:
    """One method, as the listing shows it.

    Attributes:
        name: What ``distiller=`` or ``plugin=`` takes.
        kind: What it compares: ``logit``, ``feature``, ``relation``, ...; ``plug-in`` and ``optimiser``
            change how others train.
        needs: What it reads beside the logits of both models.
        defaults: Weights and options of its config file.
        paper: arXiv number, or venue and year.
    """

    name: str
    kind: str
    needs: str
    defaults: str
    paper: str


def methods(conf: Path = CONF) -> list[Method]:
    """Returns all methods: those of ``conf/distiller``, then the plug-ins of ``conf/plugin``.

    Args:
        conf: Folder of config files, for example one of your own.
    """
    distillers = [_distiller(path) for path in sorted((conf / "distiller").glob("*.yaml"))]
    plugins = [_plugin(path) for path in sorted((conf / "plugin").glob("*.yaml")) if path.stem != "none"]
    order = {"logit": 0, "transport": 1, "relation": 2, "contrastive": 3, "feature": 4}
    return (
        sorted(distillers, key=lambda method: order.get(method.kind, -1 if not method.kind else 9)) + plugins
    )


def _distiller(path: Path) -> Method:
    node = _read(path)
    terms = {name: (_located(term), term) for name, term in (node.get("terms") or {}).items()}
    kinds = [kind.kind for kind, _ in terms.values()]
    papers = [kind.paper for kind, _ in terms.values() if kind.paper]
    needs = dict.fromkeys(need for kind, term in terms.values() for need in _needs(kind, term))
    shown = [_number("ground truth", node.get("ground_truth_weight"))]
    for name, (_, term) in terms.items():
        several = f"{name}: " if len(terms) > 1 else ""
        shown.append(several + ", ".join([_number("weight", term.get("weight")), *_options(term)]))
    optimizer = node.get("optimizer")
    if optimizer:
        kinds.insert(0, "optimiser")
        papers.insert(0, _located(optimizer).paper)
        shown.extend(_options(optimizer))
    return Method(
        path.stem, kinds[0] if kinds else "", ", ".join(needs), "; ".join(shown), papers[0] if papers else ""
    )


def _plugin(path: Path) -> Method:
    node = _read(path)
    needs: list[str] = []
    shown: list[str] = []
    papers: list[str] = []
    for each in node["plugins"].values():
        kind = _located(each)
        instance = kind(**_arguments(each))
        needs.extend(_tapped(instance.student_features, instance.teacher_features))
        shown.extend(_options(each))
        papers.append(kind.paper)
    shown.extend(f"{name} weight x{factor:g}" for name, factor in node["weight_factors"].items())
    return Method(path.stem, "plug-in", ", ".join(needs), ", ".join(shown), ", ".join(papers))


def _read(path: Path) -> dict[str, Any]:
    """Reads a choice; one that builds on others, or takes values from them, as part of a whole config."""
    text = path.read_text(encoding="utf-8")
    node: dict[str, Any] = yaml.safe_load(text)
    if "defaults" not in node and "${" not in text:
        return node
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    group, folder = path.parent.name, path.parents[1].resolve()
    chosen = [f"{group}={path.stem}", f"hydra.searchpath=[file://{folder}]"]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        composed = OmegaConf.to_container(compose("config", overrides=chosen), resolve=True)
    assert isinstance(composed, dict)
    found: dict[str, Any] = composed[group]
    return found


def _located(node: Mapping[str, Any]) -> Any:
    found = pydoc.locate(node["_target_"])
    if not inspect.isclass(found):
        raise ValueError(f"{node['_target_']} is not a class")
    return found


def _needs(kind: type[Term], node: Mapping[str, Any]) -> Iterator[str]:
    term = kind(**_arguments(node))
    yield from _tapped(term.student_features, term.teacher_features)
    for view in term.needs_views:
        yield f"{view} view"


def _tapped(student: tuple[str, ...], teacher: tuple[str, ...]) -> Iterator[str]:
    both = [tap for tap in student if tap in teacher]
    if both:
        yield " ".join(both)
    for role, taps in (("student", student), ("teacher", teacher)):
        own = [tap for tap in taps if tap not in both]
        if own:
            yield f"{role}: {' '.join(own)}"


def _arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in _NODE_KEYS}


def _options(node: Mapping[str, Any]) -> list[str]:
    options = _arguments(node).items()
    return [_number(key.replace("_", " "), value) for key, value in options if value is not None]


def _number(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        warm_up = value.get("warmup_epochs")
        return f"{name} {value.get('value', 1.0):g}" + (f" after {warm_up} epochs" if warm_up else "")
    if isinstance(value, list):
        return f"{name} {' '.join(str(item) for item in value)}"
    if isinstance(value, bool):
        return f"{name} {'yes' if value else 'no'}"
    return f"{name} {value:g}" if isinstance(value, int | float) else f"{name} {value}"
