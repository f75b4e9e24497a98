"""Batches of episodes: which terms see them whole, which see one at a time, and how values add up."""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from gda.distillers import Distiller, ModelOutput, Progress, Term, TermInputs, View
from gda.distillers.adapt_conf import AdaptConf
from gda.distillers.aug_conf import AugConf
from gda.distillers.ctkd import CurriculumTemperature
from gda.distillers.dist import DIST, dist
from gda.distillers.dkd import DKD
from gda.distillers.fisher_rao import FisherRao
from gda.distillers.ground_truth import Labels, TeacherTargets
from gda.distillers.kd import KD
from gda.distillers.lskd import LogitStandardization, standardised
from gda.distillers.nkd import NKD
from gda.distillers.sinkd import SinKD, sinkd
from gda.distillers.sinkhorn import Sinkhorn, sinkhorn
from gda.distillers.ttm import TTM, WTTM

EPISODES, QUERIES, WAY = 3, 10, 5

LOGIT_TERMS: dict[str, Callable[[], Term]] = {
    "adapt_conf": AdaptConf,
    "aug_conf": AugConf,
    "dist": DIST,
    "dkd": DKD,
    "fisher_rao": FisherRao,
    "kd": KD,
    "nkd": NKD,
    "sinkd": SinKD,
    "sinkd_mean": lambda: SinKD(reduction="mean"),
    "sinkhorn": Sinkhorn,
    "sinkhorn_debiased": lambda: Sinkhorn(debias=True),
    "sinkhorn_mean": lambda: Sinkhorn(reduction="mean"),
    "ttm": TTM,
    "wttm": WTTM,
}
all_logit_terms = pytest.mark.parametrize("make", LOGIT_TERMS.values(), ids=LOGIT_TERMS)


class Witness(Term):
    """Writes down what it is given; its value tells the parts of a batch apart."""

    takes_plugins = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[TermInputs] = []

    def forward(self, inputs: TermInputs) -> Tensor:
        self.seen.append(inputs)
        return inputs.student.logits.exp().mean() * inputs.temperature_or(1.0)


class SampleWise(Witness):
    sample_wise: ClassVar[bool] = True


class Summed(Witness):
    def __init__(self) -> None:
        super().__init__()
        self.sums_over_batch = True


class Drawing(Term):
    """Depends on nothing but its random draws."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[float] = []

    def forward(self, inputs: TermInputs) -> Tensor:
        self.drawn.append(float(torch.rand((), generator=inputs.generator)))
        return 0 * inputs.student.logits.sum()


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def output(samples: int, seed: int) -> ModelOutput:
    maps = {"stage1": normal(samples, 2, 3, 3, seed=seed + 1), "pooled": normal(samples, 4, seed=seed + 2)}
    return ModelOutput(2 * normal(samples, WAY, seed=seed).requires_grad_(), maps)


def batch(episodes: int = EPISODES, queries: int = QUERIES) -> TermInputs:
    """A batch in which every number of every tensor occurs once."""
    samples = episodes * queries
    return TermInputs(
        images=normal(samples, 3, 2, 2, seed=1),
        targets=torch.arange(WAY).repeat_interleave(queries // WAY).repeat(episodes),
        indices=torch.arange(100, 100 + samples),
        student=output(samples, 10),
        teacher=output(samples, 20),
        progress=Progress(3, 7, 2, 5),
        generator=torch.Generator().manual_seed(0),
        views={"strong": View(normal(samples, 3, 2, 2, seed=2), output(samples, 30), output(samples, 40))},
        temperature=3.0,
        episodes=episodes,
    )


def columns(inputs: TermInputs) -> dict[str, Tensor]:
    """Everything in a batch that has one entry a sample."""
    models = {"student": inputs.student, "teacher": inputs.teacher}
    found = {"images": inputs.images, "targets": inputs.targets, "indices": inputs.indices}
    for name, view in inputs.views.items():
        found[f"{name} images"] = view.images
        models |= {f"{name} student": view.student, f"{name} teacher": view.teacher}
    for name, model in models.items():
        if model is not None:
            found[f"{name} logits"] = model.logits
            found |= {f"{name} {tap}": value for tap, value in model.features.items()}
    return found


def one_by_one(inputs: TermInputs) -> list[TermInputs]:
    """The logits of each episode, cut out by hand."""
    parts = []
    for place in range(inputs.episodes):
        rows = slice(place * QUERIES, (place + 1) * QUERIES)
        student, teacher = ModelOutput(inputs.student.logits[rows]), ModelOutput(inputs.teacher_logits[rows])
        known = {"targets": inputs.targets[rows], "indices": inputs.indices[rows], "views": {}}
        parts.append(replace(inputs, student=student, teacher=teacher, episodes=1, **known))  # type: ignore[arg-type]
    return parts


def value_of(term: Term, inputs: TermInputs, **plugins: nn.Module) -> Tensor:
    """The value of a term as the distiller computes it."""
    distiller = Distiller(Labels(), 0.0, {"term": (term, 1.0)}, plugins)  # type: ignore[arg-type]
    total, values = distiller(replace(inputs, temperature=None))
    assert torch.equal(total.detach(), values["term"])
    return total


# --- the parts


def test_the_parts_are_the_episodes_in_order_with_features_and_views() -> None:
    inputs = batch()
    whole, parts = columns(inputs), inputs.by_episode()
    assert len(parts) == EPISODES
    assert len(whole) == 3 + 3 + 3 + 1 + 3 + 3  # each tensor is looked at
    for place, part in enumerate(parts):
        rows = slice(place * QUERIES, (place + 1) * QUERIES)
        found = columns(part)
        assert found.keys() == whole.keys()
        for name, value in whole.items():
            assert torch.equal(found[name], value[rows]), name


def test_a_part_is_one_episode_and_keeps_what_belongs_to_the_step() -> None:
    inputs = batch()
    for part in inputs.by_episode():
        assert part.episodes == 1
        assert (part.progress, part.temperature) == (inputs.progress, 3.0)
        assert part.generator is inputs.generator
        assert [len(each.images) for each in part.by_episode()] == [QUERIES]


def test_gradients_of_a_part_reach_its_rows_of_the_batch() -> None:
    inputs = batch()
    (gradient,) = torch.autograd.grad(inputs.by_episode()[1].student.logits.sum(), inputs.student.logits)
    assert gradient.sum(dim=1).tolist() == [0.0] * QUERIES + [float(WAY)] * QUERIES + [0.0] * QUERIES


def test_soft_targets_are_split_and_a_missing_teacher_stays_missing() -> None:
    soft = normal(EPISODES * QUERIES, WAY, seed=3).softmax(dim=1)
    views = {"strong": replace(batch().views["strong"], teacher=None)}
    parts = replace(batch(), targets=soft, teacher=None, views=views).by_episode()
    assert torch.equal(torch.cat([part.targets for part in parts]), soft)
    assert [part.teacher for part in parts] == [None] * EPISODES
    assert [part.views["strong"].teacher for part in parts] == [None] * EPISODES


@pytest.mark.parametrize("episodes", [4, 7, 31])
def test_parts_that_would_be_unequal_are_refused(episodes: int) -> None:
    with pytest.raises(ValueError, match=f"30 samples are not {episodes} equal episodes"):
        replace(batch(), episodes=episodes).by_episode()


# --- who sees them


def test_a_term_that_compares_samples_sees_one_episode_at_a_time() -> None:
    term, inputs = Witness(), batch()
    value = value_of(term, inputs)
    assert [each.indices.tolist() for each in term.seen] == [
        part.indices.tolist() for part in one_by_one(inputs)
    ]
    assert {each.episodes for each in term.seen} == {1}
    expected = torch.stack([part.student.logits.exp().mean() for part in one_by_one(inputs)]).mean()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_a_sample_wise_term_is_computed_once_on_the_whole_batch() -> None:
    term, inputs = SampleWise(), batch()
    value_of(term, inputs)
    (seen,) = term.seen
    assert torch.equal(seen.indices, inputs.indices)


def test_a_sum_over_the_batch_stays_a_sum() -> None:
    term, inputs = Summed(), batch()
    expected = torch.stack([part.student.logits.exp().mean() for part in one_by_one(inputs)]).sum()
    torch.testing.assert_close(value_of(term, inputs), expected, rtol=1e-12, atol=1e-12)
    assert len(term.seen) == EPISODES


def test_a_single_episode_is_seen_as_it_is() -> None:
    term, inputs = Witness(), batch(episodes=1)
    value_of(term, inputs)
    (seen,) = term.seen
    assert seen.student.features.keys() == {"stage1", "pooled"}
    assert torch.equal(seen.images, inputs.images)


@pytest.mark.parametrize("ground_truth", [Labels(0.1), TeacherTargets()], ids=["labels", "teacher"])
def test_the_supervised_term_is_the_mean_over_all_queries(
    ground_truth: Labels | TeacherTargets, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    forward = type(ground_truth).forward

    def counted(self: nn.Module, inputs: TermInputs) -> Tensor:
        calls.append(len(inputs.student.logits))
        return forward(self, inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(type(ground_truth), "forward", counted)
    inputs = batch()
    distiller = Distiller(ground_truth, 1.0)
    targets = distiller.targets(inputs.targets, inputs.teacher_logits)
    value, _ = distiller(replace(inputs, targets=targets))
    assert calls == [EPISODES * QUERIES]
    smoothing = getattr(ground_truth, "label_smoothing", 0.0)
    expected = nn.functional.cross_entropy(inputs.student.logits, targets, label_smoothing=smoothing)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_draws_go_on_from_episode_to_episode() -> None:
    term, again = Drawing(), Drawing()
    value_of(term, batch())
    value_of(again, batch())
    assert len(set(term.drawn)) == EPISODES
    assert term.drawn == again.drawn


# --- the terms there are


@all_logit_terms
def test_the_value_is_that_of_the_episodes_apart(make: Callable[[], Term]) -> None:
    term, inputs = make(), batch()
    apart = torch.stack([term(replace(part, temperature=None)) for part in one_by_one(inputs)])
    expected = apart.sum() if term.sums_over_batch else apart.mean()
    torch.testing.assert_close(value_of(term, inputs), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["dkd", "kd", "nkd", "ttm", "wttm"])
def test_sample_wise_terms_are_means_over_samples_indeed(name: str) -> None:
    term, inputs = LOGIT_TERMS[name](), batch(episodes=EPISODES * QUERIES // WAY, queries=WAY)
    assert term.sample_wise
    inputs = replace(inputs, temperature=None, episodes=EPISODES * QUERIES)  # each sample on its own
    apart = torch.stack([term(each) for each in inputs.by_episode()])
    torch.testing.assert_close(term(inputs), apart.mean(), rtol=1e-10, atol=1e-12)


@all_logit_terms
def test_a_batch_twice_over_doubles_sums_and_nothing_else(make: Callable[[], Term]) -> None:
    term, inputs = make(), replace(batch(), temperature=None, episodes=1)
    twice = replace(
        inputs,
        targets=inputs.targets.repeat(2),
        student=ModelOutput(inputs.student.logits.repeat(2, 1)),
        teacher=ModelOutput(inputs.teacher_logits.repeat(2, 1)),
        views={},
    )
    factor = 2.0 if term.sums_over_batch else 1.0
    torch.testing.assert_close(term(twice), factor * term(inputs), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(("term", "function"), [(SinKD, sinkd), (Sinkhorn, sinkhorn)], ids=["sinkd", "gda"])
def test_transport_stays_within_an_episode(
    term: type[SinKD] | type[Sinkhorn], function: Callable[..., Tensor], reduction: str
) -> None:
    inputs = batch()
    apart = [
        function(part.student.logits, part.teacher_logits, reduction=reduction) for part in one_by_one(inputs)
    ]
    value = value_of(term(reduction=reduction), inputs)  # type: ignore[arg-type]
    total = torch.stack(apart).sum()
    torch.testing.assert_close(value, total if reduction == "sum" else total / EPISODES, rtol=1e-10, atol=0)
    pooled = function(inputs.student.logits, inputs.teacher_logits, reduction=reduction)
    assert not torch.isclose(value, pooled, rtol=1e-3)


def test_dist_is_the_mean_of_its_values_on_each_episode() -> None:
    inputs = batch()
    apart = [dist(part.student.logits, part.teacher_logits, 1.0, 2.0, 4.0) for part in one_by_one(inputs)]
    value = value_of(DIST(1.0, 2.0, 4.0), inputs)
    torch.testing.assert_close(value, torch.stack(apart).mean(), rtol=1e-12, atol=1e-12)
    pooled = dist(inputs.student.logits, inputs.teacher_logits, 1.0, 2.0, 4.0)
    assert not torch.isclose(value, pooled, rtol=1e-3)


@all_logit_terms
def test_the_order_of_an_episodes_classes_changes_nothing(make: Callable[[], Term]) -> None:
    """Class 0 of an episode is any class: only a term that mixes episodes can see its number."""
    inputs = batch()
    order = torch.tensor([3, 0, 4, 1, 2])
    rows = slice(QUERIES, 2 * QUERIES)
    student, teacher = inputs.student.logits.detach().clone(), inputs.teacher_logits.detach().clone()
    student[rows], teacher[rows] = student[rows][:, order], teacher[rows][:, order]
    targets = inputs.targets.clone()
    targets[rows] = order.argsort()[targets[rows]]
    permuted = replace(
        inputs, targets=targets, student=ModelOutput(student), teacher=ModelOutput(teacher), views={}
    )
    plain = value_of(make(), inputs)
    torch.testing.assert_close(value_of(make(), permuted), plain, rtol=1e-10, atol=1e-12)
    mixed = value_of(make(), replace(permuted, episodes=1))
    mixes = isinstance(make(), DIST | SinKD | Sinkhorn)
    assert torch.isclose(mixed, value_of(make(), replace(inputs, episodes=1)), rtol=1e-9) != mixes


# --- plug-ins


def test_a_plug_in_changes_what_each_episode_shows() -> None:
    term, inputs = Witness(), batch()
    value_of(term, inputs, lskd=LogitStandardization(2.0))
    assert len(term.seen) == EPISODES
    for seen, part in zip(term.seen, one_by_one(inputs), strict=True):
        torch.testing.assert_close(
            seen.student.logits, standardised(part.student.logits), rtol=1e-12, atol=1e-12
        )
        torch.testing.assert_close(
            seen.teacher_logits, standardised(part.teacher_logits), rtol=1e-12, atol=1e-12
        )
        assert seen.temperature == 2.0


@pytest.mark.parametrize("term", [KD, DKD])
def test_logit_losses_with_both_plug_ins_do_not_see_how_a_batch_is_divided(term: type[KD | DKD]) -> None:
    values, gradients = [], []
    for episodes in (EPISODES, 1):
        curriculum = CurriculumTemperature()
        inputs = replace(batch(), episodes=episodes)
        value = value_of(term(), inputs, ctkd=curriculum, lskd=LogitStandardization())
        value.backward()
        values.append(value)
        gradients.append(curriculum.raw_temperature.grad)
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=0)
    assert gradients[0] is not None
    assert float(gradients[0].abs()) > 0


def test_a_learned_temperature_gets_the_gradient_of_all_episodes() -> None:
    curriculum, inputs = CurriculumTemperature(), batch()
    value_of(Witness(), inputs, ctkd=curriculum).backward()
    assert curriculum.raw_temperature.grad is not None
    share = torch.sigmoid(torch.ones(1))
    slope = inputs.student.logits.exp().mean() * curriculum.span * share * (1 - share)
    expected = (curriculum.reversal(inputs.progress) * slope).float()
    torch.testing.assert_close(curriculum.raw_temperature.grad, expected, rtol=1e-5, atol=0)
    assert float(curriculum.raw_temperature.grad) < 0


def test_half_precision_logits_are_widened_before_they_are_divided() -> None:
    inputs = batch()
    half = ModelOutput(inputs.student.logits.detach().bfloat16())
    term = Witness()
    value_of(term, replace(inputs, student=half, teacher=half, views={}))
    assert {each.student.logits.dtype for each in term.seen} == {torch.float32}
    assert {each.teacher_logits.dtype for each in term.seen} == {torch.float32}
