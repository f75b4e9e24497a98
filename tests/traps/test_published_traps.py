"""Twenty traps of published code, one test each: what happens there, and what happens here instead.

Each test shows the rule on the real code with tiny inputs; the units have tests of their own. "Published"
is the code of GDA, vision_weak_to_strong, mdistiller, RepDistiller and few-shot-meta-baseline.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.errors import HydraException
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gda.app import finish
from gda.bench.published_sinkhorn import published_sinkhorn
from gda.build import InputFiles, build_run
from gda.config.check import check
from gda.config.faults import ConfigFaults
from gda.data.dataset import ImageSplit
from gda.data.few_shot.episodes import EpisodeSampler
from gda.data.loader import TensorLoader
from gda.distillers import ModelOutput, Progress, RunFacts, TermInputs
from gda.distillers.fitnet import FitNet
from gda.distillers.functional import adapt_conf, aug_conf, dkd, fisher_rao, kd, rkd_angle, sinkhorn
from gda.distillers.review_kd import ReviewKD
from gda.errors import UserError
from gda.models import create_model, features
from gda.models.tap_descriptions import describe
from gda.models.weights.checkpoints import load_checkpoint
from gda.models.zoo.meta_baseline import MetaBaseline
from gda.tasks.classification import ClassificationTask
from gda.tasks.meta_baseline import MetaBaselineTask
from gda.tasks.task import StepOutput
from gda.tracking.run_folder import RunFolder
from gda.training.trainer import Trainer

Compose = Callable[..., dict[str, Any]]

# Episodes of the digits, two in a batch; encoders of 16x16 pixels start from files.
FEW_SHOT = (
    *("dataset=digits_few_shot", "task=meta_baseline", "recipe=digits_few_shot_meta", "encoder=classifier"),
    *("student=convnet4", "student.image_size=16"),
    *("task.train_query=4", "task.train_episodes_per_batch=2", "task.train_batches=2"),
    *("task.query=4", "task.batches=2", "recipe.epochs=3"),
    *("tracking=none", "trainer.device=cpu", "trainer.threads=1"),
)
TEMPERATURE = 4.25  # what the meta-learner of the tests has learned


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def encoder_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files: an ``encoder``, a ``classifier``, and a ``meta`` learner, which has a temperature."""
    torch.manual_seed(3)
    encoder = create_model("convnet4", num_classes=None, image_size=16)
    classifier = create_model("convnet4", num_classes=5, image_size=16)
    models = {"encoder": encoder, "classifier": classifier, "meta": MetaBaseline(encoder, "cos", TEMPERATURE)}
    folder = tmp_path_factory.mktemp("encoders")
    for name, model in models.items():
        torch.save({"model": model.state_dict()}, folder / f"{name}.pt")
    return {name: folder / f"{name}.pt" for name in models}


@pytest.fixture
def few_shot(compose: Compose, encoder_weights: dict[str, Path]) -> Compose:
    """Composes Meta-Baseline from an encoder's file and a teacher's."""

    def composed(*overrides: str, teacher: str | None = "meta") -> dict[str, Any]:
        chosen = ["teacher=convnet4", "teacher.image_size=16"] if teacher else ["teacher=none"]
        config = compose(*FEW_SHOT, *chosen, *overrides)
        config["encoder"]["checkpoint"] = str(encoder_weights["encoder"])
        if teacher:
            config["teacher"]["checkpoint"] = str(encoder_weights[teacher])
        assert check(config) == []
        return config

    return composed


@pytest.fixture
def built(tmp_path: Path) -> Callable[[dict[str, Any]], Any]:
    """Builds the trainer of a config from the files that it names, as a run does, and trains nothing."""

    def build(config: dict[str, Any]) -> Trainer:
        named = {
            role: config[role]["checkpoint"] for role in ("teacher", "encoder") if config[role]["checkpoint"]
        }
        files = InputFiles(**{role: Path(file) for role, file in named.items() if file != "auto"})
        trainer = build_run(config, RunFolder(tmp_path / "run"), files, "trap", None)
        assert isinstance(trainer, Trainer)
        return trainer

    return build


def first_step(task: Any, progress: Progress) -> tuple[StepOutput, Tensor, Tensor]:
    """The output of a task's first step, and the logits of student and teacher in it."""
    output = task.training_step(next(task.batches(0)), progress)
    return output, output.tensors["student logits"], output.tensors["teacher logits"]


def logits(batch: int, classes: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, classes, generator=generator)


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(at), at)[0]


def test_01_fisher_rao_at_equality_and_at_constant_rows() -> None:
    """Published: NaN slope at equality, infinite at a constant row. Here: finite, in float32 always."""
    student, teacher = logits(4, 6), logits(4, 6, seed=1)
    student[0] = teacher[0]
    student[1], teacher[2] = 1.5, -0.5
    student[3] = teacher[3] = 0.25
    with torch.autocast("cpu", torch.bfloat16):
        value = fisher_rao(student, teacher)
        slope = gradient(lambda s: fisher_rao(s, teacher), student)
    assert value.dtype is slope.dtype is torch.float32
    assert value.item() == fisher_rao(student, teacher).item() > 0
    assert slope.isfinite().all()
    assert slope[0].abs().max() == slope[3].abs().max() == 0
    assert slope[1].sum() > 0, "a constant row is still pulled to the teacher's mean"


def test_02_the_sinkhorn_term_and_the_batch_size(tiny: Compose) -> None:
    """Published: a sum over each GPU's batch. Here: the same, or ``reduction: mean``."""
    student, teacher = logits(6, 5), logits(6, 5, seed=1)
    twice = student.repeat(2, 1), teacher.repeat(2, 1)
    once = sinkhorn(student, teacher).item()
    assert sinkhorn(*twice).item() == pytest.approx(2 * once, rel=1e-5)
    assert sinkhorn(*twice, reduction="mean").item() == pytest.approx(once / 6, rel=1e-5)
    assert tiny("alignment=gda")["alignment"]["sinkhorn"]["reduction"] == "sum"
    assert check(tiny("alignment=gda", "alignment.sinkhorn.reduction=mean")) == []


def test_03_the_sinkhorn_term_at_equality(
    tiny: Compose, teacher_weights: Path, built: Callable[..., Any]
) -> None:
    """Published: not zero where student and teacher agree. Here: ``debias: true`` makes it zero."""
    same = logits(8, 10)
    for debias in (False, True):
        config = tiny(f"alignment.sinkhorn.debias={debias}", f"teacher.checkpoint={teacher_weights}")
        term = built(config).task.distiller.terms["sinkhorn"]
        inputs = TermInputs(
            images=torch.zeros(8, 3, 1, 1),
            targets=torch.zeros(8, dtype=torch.int64),
            indices=torch.arange(8),
            student=ModelOutput(same),
            teacher=ModelOutput(same),
            progress=Progress(0, 1),
            generator=torch.Generator(),
        )
        assert (abs(term(inputs).item()) < 1e-5) == debias


def test_04_nothing_but_its_own_weight_scales_an_alignment_term(
    tiny: Compose, teacher_weights: Path, built: Callable[..., Any]
) -> None:
    """Published: DKD drops Fisher-Rao, AugConf and AdaptConf rescale GDA. Here: its weights are its own."""
    for method in ("kd", "dkd", "aug_conf", "adapt_conf"):
        config = tiny(f"distiller={method}", "alignment=gda", f"teacher.checkpoint={teacher_weights}")
        config["distiller"]["terms"][method]["weight"] = 0.3
        output, student, teacher = first_step(built(config).task, Progress(1, 2))
        aligned = 0.02 * fisher_rao(student, teacher) + 0.1 * sinkhorn(student, teacher)
        expected = 0.3 * output.terms[method] + aligned
        assert aligned > 0.01 * expected
        assert output.distilled is not None
        assert output.distilled.item() == pytest.approx(expected.item(), rel=1e-5), method


def test_05_alignment_counts_once_in_few_shot_methods(few_shot: Compose, built: Callable[..., Any]) -> None:
    """Published: AugConf adds GDA twice, AdaptConf times the classes and once more. Here: exactly once."""
    alone: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "aug_conf": lambda s, t: aug_conf(s, t, alpha=0.5, temperature=10.0),
        "adapt_conf": lambda s, t: adapt_conf(s, t, tau=0.25, temperature=10.0),
    }
    for method, loss in alone.items():
        config = few_shot(f"distiller={method}", "alignment=gda", "task.pool_episodes=true")
        config["distiller"]["terms"][method]["temperature"] = 10.0
        config["distiller"]["terms"][method].update({"tau": 0.25} if method == "adapt_conf" else {})
        config["alignment"]["fisher_rao"]["weight"] = 0.1
        output, student, teacher = first_step(built(config).task, Progress(9, 10))
        aligned = 0.1 * fisher_rao(student, teacher) + 0.1 * sinkhorn(student, teacher)
        expected = loss(student, teacher) + aligned
        assert aligned > 0.1 * expected
        assert output.distilled is not None
        assert output.distilled.item() == pytest.approx(expected.item(), rel=1e-5), method


def test_06_confidence_shares_have_names_and_ranges_of_their_own(tiny: Compose) -> None:
    """Published: AdaptConf's "threshold 8" is a share elsewhere. Here: own names, shares within [0, 1]."""
    config = tiny("distiller=adapt_conf")
    config["distiller"]["terms"]["adapt_conf"]["tau"] = 8
    assert check(config) == []
    for method, option in (("aug_conf", "alpha_max"), ("aug_conf", "tau"), ("dkd", "tau")):
        config = tiny(f"distiller={method}")
        config["distiller"]["terms"][method][option] = 8
        (fault,) = check(config)
        assert fault.where == f"distiller.terms.{method}.{option}"
        assert ("at most 1" in fault.what) == (option == "alpha_max")


def test_07_sinkhorn_does_not_mix_episodes(few_shot: Compose, built: Callable[..., Any]) -> None:
    """Published: one transport for all episodes. Here: one each, unless ``pool_episodes: true``."""
    values = {}
    for pooled in (False, True):
        config = few_shot("distiller=kd", "alignment=gda", f"task.pool_episodes={pooled}")
        output, student, teacher = first_step(built(config).task, Progress(0, 3))
        parts = [(student, teacher)] if pooled else zip(student.chunk(2), teacher.chunk(2), strict=True)
        values[pooled] = output.terms["sinkhorn"].item()
        assert values[pooled] == pytest.approx(sum(sinkhorn(s, t).item() for s, t in parts), rel=1e-5)
    assert abs(values[False] / values[True] - 1) > 1e-3


def test_08_what_the_config_says_is_what_runs(
    tiny: Compose, few_shot: Compose, built: Any, tmp_path: Path
) -> None:
    """Published: defaults of flags override files, some flags do nothing. Here: one config, recorded."""
    task = built(few_shot("distiller=kd", "distiller.terms.kd.temperature=3")).task
    assert task.train_loader.images.shape[-1] == 16, "conf/dataset says 16, the signature's default is 8"
    assert task.distiller.terms["kd"].temperature == 3
    with pytest.raises(HydraException, match="temprature"):
        tiny("distiller=kd", "distiller.terms.kd.temprature=3")
    config = tiny(
        "distiller=vanilla", "alignment=none", "teacher=none", "recipe.lr=0.037", f"runs={tmp_path}"
    )
    folder = finish(config).folder
    assert yaml.safe_load((folder / "config.yaml").read_text()) == config
    rates = [json.loads(line).get("learning_rate") for line in (folder / "metrics.jsonl").open()]
    assert 0.037 in rates


def test_09_best_is_chosen_on_validation_alone(
    few_shot: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published: ``max-va`` saved every epoch, test selectable. Here: the best validation epoch or none."""
    validation, test = (50.0, 70.0, 60.0), (10.0, 20.0, 90.0)
    for share, chosen in ((0.2, 2), (0.0, None)):

        def evaluate(task: MetaBaselineTask, student: Any, progress: Progress, share: float = share) -> Any:
            held_out = {"validation_1shot": validation[progress.epoch]} if share else {}
            return {**held_out, "test_1shot": test[progress.epoch]}

        monkeypatch.setattr(MetaBaselineTask, "evaluate", evaluate)
        options = ("distiller=vanilla", "alignment=none", f"dataset.validation={share}", f"runs={tmp_path}")
        config = few_shot(*options, teacher=None)
        finished = finish(config)
        best = finished.result["best"]
        assert (best and best["epoch"]) == chosen
        assert (finished.result["oracle_epoch"], finished.result["test_1shot_oracle"]) == (3, 90.0)
        assert (finished.folder / "best.pt").exists() == (chosen is not None)
        if chosen is not None:
            kept, last = (torch.load(finished.folder / f"{each}.pt") for each in ("best", "last"))
            assert (kept["epoch"], last["epoch"]) == (2, 3)
            assert not torch.equal(kept["model"]["temp"], last["model"]["temp"])


def test_10_a_meta_teacher_keeps_its_learned_temperature(
    few_shot: Compose, built: Callable[..., Any]
) -> None:
    """Published: dropped and reset to 10. Here: kept; 10 is for a classifier, which has learned none."""
    for teacher, temperature in (("meta", TEMPERATURE), ("classifier", 10.0)):
        task = built(few_shot("distiller=kd", teacher=teacher)).task
        batch = next(task.batches(0))
        found = task.ask_teacher(batch).logits
        encoder = task.teacher.encoder
        expected = MetaBaseline(encoder, "cos", temperature).eval()(batch.shots, batch.queries)
        torch.testing.assert_close(found, expected.detach().flatten(0, 1), rtol=1e-4, atol=1e-4)
        assert task.student.temp.item() == 10.0, "the student's own starts where the config says"


def test_11_training_episodes_depend_on_seed_and_epoch(few_shot: Compose, built: Callable[..., Any]) -> None:
    """Published: on the epoch alone. Here: on both, while all runs are judged on the same episodes."""

    def episodes(task: Any, epoch: int) -> list[Any]:
        return [batch.indices.tolist() for batch in task.batches(epoch)]

    first, again, other = (built(few_shot("distiller=kd", f"seed={seed}")).task for seed in (0, 0, 1))
    drawn = [episodes(first, 0), episodes(first, 1), episodes(other, 0), episodes(other, 1)]
    assert all(one != two for at, one in enumerate(drawn) for two in drawn[:at])
    assert drawn[:2] == [episodes(again, 0), episodes(again, 1)]
    of_first, of_other = (task.evaluate(task.student, Progress(0, 3)) for task in (first, other))
    assert of_first == of_other, "equal encoders, equal figures, whatever the seed"


def test_12_a_teacher_without_weights_is_an_error(tiny: Compose, few_shot: Compose, tmp_path: Path) -> None:
    """Published: a random teacher teaches, without a word. Here: nothing runs."""
    image, episodic = tiny("distiller=kd"), few_shot("distiller=kd")
    for config in (image, episodic):
        config["teacher"]["checkpoint"] = None
        config["runs"] = str(tmp_path / "runs")
        with pytest.raises(ConfigFaults, match=r"teacher\.checkpoint"):
            finish(config)
    assert not (tmp_path / "runs").exists()


def test_13_evaluation_counts_every_image_once(tiny: Compose, built: Callable[..., Any]) -> None:
    """Published: the last batch is padded and images count twice. Here: exact, whatever the batch size."""
    split = ImageSplit(torch.zeros(10, 3, 2, 2, dtype=torch.uint8), torch.arange(10))
    for size in (1, 3, 4, 7, 10, 16):
        loader = TensorLoader(split, size, {}, (0.5,) * 3, (0.5,) * 3)
        assert torch.cat([batch.indices for batch in loader.batches()]).tolist() == list(range(10)), size
    figures = []
    for size in (1, 7, 512):  # of 60 training, 179 validation and 900 test images
        config = tiny("teacher=none", "distiller=vanilla", "alignment=none")
        config["recipe"]["evaluation_batch_size"] = size
        task = built(config).task
        figures.append(task.evaluate(task.student, Progress(0, 1)))
    images = task.evaluations["test"].pipeline(task.evaluations["test"].images, torch.Generator())
    with torch.no_grad():
        right = (task.student.eval()(images).argmax(1) == task.evaluations["test"].targets).sum().item()
    assert [each["test_top1"] for each in figures] == [100 * right / 900] * 3
    shares = [EpisodeSampler(torch.arange(6) % 2, 2, 1, 2, 4, rank=rank, ranks=2) for rank in (0, 1)]
    whole = EpisodeSampler(torch.arange(6) % 2, 2, 1, 2, 4)
    assert torch.equal(torch.cat([each.batch(0, 0) for each in shares]), whole.batch(0, 0))
    with pytest.raises(UserError, match="evenly"):
        EpisodeSampler(torch.arange(6) % 2, 2, 1, 2, 4, ranks=3)


def test_14_feature_methods_take_their_shapes_from_the_models(tiny: Compose) -> None:
    """Published: shapes of one network, a VGG stage 5, crashes at other sizes. Here: from a dry forward."""
    pairs: dict[tuple[str, str], tuple[tuple[int, ...], tuple[int, ...]]] = {
        ("resnet8", "vgg8"): ((1, 2, 3), (1, 2, 3)),
        ("vgg8", "resnet8x4"): ((2, 3, 4), (1, 2, 3)),  # maps of other sizes
        ("mobilenetv2", "vgg8"): ((2, 3, 4), (1, 2, 3)),
    }
    for names, stages in pairs.items():
        models = [create_model(name, num_classes=4) for name in names]
        for term in (ReviewKD(*stages), FitNet(*stages)):
            taps = term.student_features, term.teacher_features
            ours, theirs = (describe(model, tap, 32) for model, tap in zip(models, taps, strict=True))
            facts = RunFacts(4, 2, None, ours, theirs, models[0], models[1])
            assert term.refusals(facts) == []
            term.setup(facts)
            images, outputs = logits(2, 3 * 32 * 32).reshape(2, 3, 32, 32), []
            for model, tap in zip(models, taps, strict=True):
                with features(model, tap) as tapped:
                    outputs.append(ModelOutput(model(images), tapped.collect()))
            student, teacher = outputs
            progress, draws = Progress(0, 1), torch.Generator()
            term(
                TermInputs(images, torch.arange(2), torch.arange(2), student, teacher, progress, draws)
            ).backward()
            slopes = [each.grad for each in term.parameters()]
            assert slopes
            assert all(slope is not None and slope.isfinite().all() for slope in slopes), (names, term)
    config = tiny("distiller=fitnet", "student=vgg8", "teacher=vgg8", "dataset.image_size=32")
    config["distiller"]["terms"]["fitnet"]["stages"] = [5]
    assert any("has no stage5" in str(fault) and "stages=[1,2,3,4]" in str(fault) for fault in check(config))


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation puts out."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, out.numel() if isinstance(out, Tensor) else 0)
        return out


def test_15_the_angles_of_rkd_take_bounded_memory() -> None:
    """Published: batch^2 * width numbers and more. Here: blocks of bounded size, and the same value."""
    student, teacher = logits(96, 512).requires_grad_(), logits(96, 32, seed=1)
    with Largest() as largest:
        loss = rkd_angle(student, teacher)
        loss.backward()
    assert 96 * 512 <= largest.numbers <= 2**18 < 96**3 < 96**2 * 512

    def cosines(points: Tensor) -> Tensor:
        sides = F.normalize(points[None] - points[:, None], dim=2)
        return sides @ sides.transpose(1, 2)

    published = F.smooth_l1_loss(cosines(student.double()), cosines(teacher.double()))
    assert loss.item() == pytest.approx(published.item(), rel=1e-5)


def test_16_adapt_conf_with_a_small_tau() -> None:
    """Published: exp(CE / tau) overflows and the loss is NaN. Here: a sigmoid of the difference."""
    student, teacher = logits(6, 5), logits(6, 5, seed=1)
    teacher[:3] = student[:3] + 0.1 * teacher[:3]
    tau = 1e-3
    own = F.cross_entropy(student, student.argmax(1), reduction="none")
    other = F.cross_entropy(student, teacher.argmax(1), reduction="none")
    exponentials = (own / tau).exp(), (other / tau).exp()
    assert not (exponentials[0] / sum(exponentials)).isfinite().all(), "the published weight fails here"
    agree = student.argmax(1) == teacher.argmax(1)
    assert agree.any()
    assert not agree.all()

    each = torch.stack([kd(s[None], t[None], 2.0) for s, t in zip(student, teacher, strict=True)])
    share = 0.5 * agree  # the limit of small tau
    expected = ((1 - share) * each + share * own).mean()
    assert adapt_conf(student, teacher, tau, 2.0).item() == pytest.approx(expected.item(), rel=1e-5)
    assert gradient(lambda s: adapt_conf(s, teacher, tau, 2.0), student).isfinite().all()


def test_17_dkd_for_two_classes_and_for_wide_logits() -> None:
    """Published: infinite for two classes, NaN in float32 at spreads of 200. Here: defined, in log-space."""
    target = torch.tensor([0, 1, 0, 1])
    two = logits(4, 2), logits(4, 2, seed=1)
    # With two classes nothing but the target part is left, and that is KD.
    assert dkd(*two, target, 1.0, 8.0, 4.0).item() == pytest.approx(kd(*two, 4.0).item(), rel=1e-5)
    wide = logits(4, 5, scale=200.0), logits(4, 5, seed=1, scale=200.0)
    exact = dkd(wide[0].double(), wide[1].double(), target, 1.0, 8.0, 1.0)
    assert dkd(*wide, target, 1.0, 8.0, 1.0).item() == pytest.approx(exact.item(), rel=1e-5)
    for student, teacher in (two, wide):
        loss = partial(dkd, teacher=teacher, target=target, alpha=1.0, beta=8.0, temperature=1.0)
        assert gradient(loss, student).isfinite().all()


def test_18_sinkhorn_with_a_small_epsilon() -> None:
    """Published: exp(-cost / epsilon) underflows in float32 below 0.02. Here: logarithms take over."""
    student, teacher = logits(8, 6, scale=9.0), logits(8, 6, seed=1, scale=9.0)
    settings: dict[str, Any] = {"temperature": 0.2, "epsilon": 0.005}
    assert not published_sinkhorn(student, teacher, **settings).isfinite(), "the published form fails here"
    exact = published_sinkhorn(student.double(), teacher.double(), **settings)
    assert sinkhorn(student, teacher, **settings).item() == pytest.approx(exact.item(), rel=1e-4)
    slope = gradient(lambda s: sinkhorn(s, teacher, **settings), student)
    double = teacher.double()
    expected = gradient(lambda s: published_sinkhorn(s, double, **settings), student.double())
    assert (slope - expected).norm() <= 1e-3 * expected.norm()


def test_19_equal_seeds_pair_the_methods(
    tiny: Compose, teacher_weights: Path, built: Callable[..., Any]
) -> None:
    """Published: each method draws other weights and batches. Here: all of a seed share them."""

    def seen(method: str, alignment: str, seed: int) -> list[Tensor]:
        config = tiny(f"distiller={method}", f"alignment={alignment}", f"seed={seed}")
        config["teacher"]["checkpoint"] = str(teacher_weights)
        task: ClassificationTask = built(config).task
        tensors = [each.clone() for each in task.student.state_dict().values()]
        for epoch in (0, 1):
            for step, batch in enumerate(task.batches(epoch)):
                task.training_step(batch, Progress(epoch, 2, step, task.steps))  # it may draw as it likes
                torch.rand(3)
                tensors += [batch.indices, batch.images]
        return tensors

    plain = seen("vanilla", "none", 0)
    for method in ("kd", "fitnet", "crd"):  # crd draws its negatives, fitnet and crd their own weights
        pairs = zip(plain, seen(method, "gda", 0), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs), method
    assert not all(torch.equal(one, two) for one, two in zip(plain, seen("vanilla", "none", 1), strict=True))


def test_20_resnet12_without_pooling_is_kept_for_its_checkpoints(compose: Compose, tmp_path: Path) -> None:
    """Published: resnet12 pools nothing, 22 times the work. Here: kept by its name, never a default."""
    unpooled = create_model("resnet12", num_classes=None)
    pooled = create_model("resnet12_bottle", num_classes=None)
    sizes = [describe(model, ("layer4",), 80)["layer4"].shape[1:] for model in (unpooled, pooled)]
    assert sizes == [(80, 80), (5, 5)]
    torch.save({"model": unpooled.state_dict()}, tmp_path / "published.pt")
    again = create_model("resnet12", num_classes=None)
    load_checkpoint(again, tmp_path / "published.pt")
    images = logits(1, 3 * 8 * 8).reshape(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), unpooled.eval()(images))
    with pytest.raises(UserError):
        load_checkpoint(pooled, tmp_path / "published.pt")
    conf = Path(__file__).resolve().parents[2] / "conf"
    for file in (conf / "config.yaml", *conf.glob("experiment/**/*.yaml"), *conf.glob("sweep/*.yaml")):
        choices = (yaml.safe_load(file.read_text()) or {}).get("defaults", [])
        for choice in choices:
            assert "resnet12" not in (choice.values() if isinstance(choice, dict) else [choice]), file
