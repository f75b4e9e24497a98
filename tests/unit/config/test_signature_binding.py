"""Config nodes are held against signatures: names, types, ranges, choices, nested lists, own classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from gda.config.signature import TargetError, check_call, check_value, locate
from gda.ranges import NonNegative, Positive, Range, Share


class Own:
    """A user's class."""

    def __init__(
        self,
        weight: Annotated[float, Positive],
        count: int,
        kind: Literal["sum", "mean"] = "sum",
        share: Annotated[float, Share] | None = None,
        stages: Sequence[int] = (),
        pair: tuple[float, float] = (0.0, 1.0),
        flag: bool = False,
        text: str = "a",
        table: Mapping[str, float] | None = None,
        free: Any = None,
        shares: Sequence[Annotated[float, Share]] = (),
        sides: tuple[Annotated[int, Positive], float] = (1, 0.0),
        *,
        only: Annotated[int, NonNegative] = 0,
    ) -> None: ...


def takes_any(name: str, **options: Any) -> None: ...


@dataclass
class Plain:
    size: Annotated[int, Range(minimum=2, below=10)]


def faults(**values: Any) -> dict[str, str]:
    node = {"_target_": "x", "weight": 1.0, "count": 2, **values}
    return {fault.where: str(fault) for fault in check_call("a.b", node, Own)}


def test_a_right_node_has_no_faults() -> None:
    assert faults() == {}
    assert (
        faults(
            weight=1,  # a whole number is a number
            kind="mean",
            share=0,
            stages=[1, 2],
            pair=[0, 1.5],
            flag=True,
            text="",
            table={"a": 1},
            free={"any": ["thing"]},
            shares=[0, 0.5, 1],
            sides=[1, -1],
            only=3,
            _convert_="all",
            _partial_=True,
        )
        == {}
    )


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("weight", "much", "a number"),
        ("weight", True, "a number"),
        ("weight", None, "a number"),
        ("weight", 0, "greater than 0"),
        ("weight", float("nan"), "greater than 0"),
        ("count", 2.5, "a whole number"),
        ("count", False, "a whole number"),
        ("kind", "mena", "one of 'sum', 'mean'"),
        ("share", 1.5, "at most 1"),
        ("share", -0.1, "at least 0"),
        ("share", "half", "a number or null"),
        ("stages", 3, "a list"),
        ("stages", [1, "two"], "a whole number"),
        ("pair", [1.0], "a list of 2 values"),
        ("pair", [1.0, "x"], "a number"),
        ("flag", 1, "true or false"),
        ("text", 4, "text"),
        ("table", [1], "a mapping"),
        ("shares", [0.5, -5, 3], "in [0.5, -5, 3], -5 must be at least 0"),
        ("shares", [0.5, "x"], "a number"),
        ("sides", [0, 1.0], "in [0, 1.0], 0 must be greater than 0"),
        ("only", -1, "at least 0"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(key: str, value: Any, expected: str) -> None:
    found = faults(**{key: value})
    assert set(found) == {f"a.b.{key}"}
    assert expected in found[f"a.b.{key}"]


def test_the_fix_is_the_default_as_one_types_it() -> None:
    assert "Try: a.b.flag=false" in faults(flag=1)["a.b.flag"]
    assert "Try: a.b.share=null" in faults(share=2)["a.b.share"]
    assert "Try: a.b.kind=sum" in faults(kind="x")["a.b.kind"]
    assert "Try" not in faults(weight=0)["a.b.weight"]


def test_unknown_and_missing_arguments_are_all_named() -> None:
    node = {"_target_": "x", "wieght": 1.0, "stagse": [], "count": "???"}
    found = {fault.where: str(fault) for fault in check_call("a.b", node, Own)}
    assert set(found) == {"a.b.wieght", "a.b.stagse", "a.b.weight", "a.b.count"}
    assert "did you mean 'weight'" in found["a.b.wieght"]
    assert "did you mean 'stages'" in found["a.b.stagse"]
    assert "Try: +a.b.weight=VALUE" in found["a.b.weight"]
    assert "a value is needed" in found["a.b.count"]


def test_arguments_that_the_code_supplies_are_not_the_users() -> None:
    assert check_call("a", {"_target_": "x", "weight": 1.0}, Own, supplied=("count",)) == []
    (fault,) = check_call("a", {"weight": 1.0, "count": 1}, Own, supplied=("count",))
    assert "set by the framework" in fault.what
    assert fault.fix == "~a.count"
    assert check_call("a", {"weight": 1.0, "count": 1, "seed": 5}, Own, ignored=("seed",)) == []


def test_targets_that_take_anything_accept_anything() -> None:
    assert check_call("a", {"name": "x", "depth": 3}, takes_any) == []
    (fault,) = check_call("a", {"depth": 3}, takes_any)
    assert fault.where == "a.name"


def test_dataclasses_are_bound_as_functions_are() -> None:
    assert check_call("a", {"size": 2}, Plain) == []
    for size in (1, 10):
        (fault,) = check_call("a", {"size": size}, Plain)
        assert "at least 2 and less than 10" in fault.what


def test_nested_targets_are_left_to_their_own_check() -> None:
    assert check_value("a", {"_target_": "x"}, int) == []


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("gda.distillers.kd.KDD", "did you mean 'KD'"),
        ("gda.distillers.kdd.KD", "gda.distillers has no 'kdd'"),
        ("no_such_package.Term", "PYTHONPATH"),
        ("gda.distillers.kd.__doc__", "not a class or function"),
    ],
)
def test_targets_that_lead_nowhere(target: str, message: str) -> None:
    with pytest.raises(TargetError, match=message.replace("(", r"\(")):
        locate(target)


def test_a_module_that_fails_to_import_says_why(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "is_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TargetError, match="a_package_that_is_not_there"):
        locate("needs_more.Term")
    with pytest.raises(TargetError, match="ZeroDivisionError"):
        locate("is_broken.Term")
