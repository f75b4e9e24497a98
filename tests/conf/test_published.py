"""The published settings, value by value."""

from collections.abc import Callable
from typing import Any

import pytest

Compose = Callable[..., dict[str, Any]]


def test_the_published_gda_run(compose: Compose) -> None:
    config = compose("experiment=gda/resnet56_resnet20")
    assert config["dataset"]["name"] == "cifar100"
    assert config["teacher"]["name"] == "resnet56"
    assert config["student"]["name"] == "resnet20"
    assert config["ground_truth"]["name"] == "labels"
    assert config["distiller"] == {
        "name": "kd",
        "ground_truth_weight": 2.0,
        "terms": {"kd": {"_target_": "gda.distillers.kd.KD", "weight": 1.0, "temperature": 4.0}},
    }
    assert config["alignment"] == {
        "name": "gda",
        "enabled": True,
        "fisher_rao": {"_target_": "gda.distillers.fisher_rao.FisherRao", "weight": 0.02},
        "sinkhorn": {
            "_target_": "gda.distillers.sinkhorn.Sinkhorn",
            "weight": 0.1,
            "temperature": 2.0,
            "epsilon": 0.1,
            "iterations": 20,
            "reduction": "sum",
            "debias": False,
            "scope": "local",
        },
    }
    assert config["recipe"] == compose("recipe=w2s", "dataset=cifar100")["recipe"]
    assert config["recipe"]["batch_size"] == 128
    assert config["cluster"]["name"] == "local"


def test_the_preset_differs_from_its_groups_only_in_the_published_weights(compose: Compose) -> None:
    plain = compose(
        *("dataset=cifar100", "teacher=resnet56", "student=resnet20", "distiller=kd", "alignment=gda"),
        "recipe=w2s",
    )
    preset = compose("experiment=gda/resnet56_resnet20")
    assert {key for key in preset if preset[key] != plain[key]} == {"distiller"}


CRD = {
    "name": "crd",
    "epochs": 240,
    "batch_size": 64,
    "drop_last": False,
    "label_smoothing": 0.0,
    "validation": 0.0,
    "lr": None,
    "decay_norm_and_bias": True,
    "gradient_clip": None,
    "optimizer": {
        "_target_": "torch.optim.SGD",
        "_partial_": True,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "nesterov": False,
    },
    "schedule": {
        "_target_": "gda.training.schedules.Steps",
        "milestones": [150, 180, 210],
        "factor": 0.1,
    },
    "train_transforms": {
        "crop": {"_target_": "gda.data.transforms.PadCrop", "padding": 4},
        "flip": {"_target_": "gda.data.transforms.HorizontalFlip", "probability": 0.5},
    },
    "test_transforms": {},
}

W2S = {
    "name": "w2s",
    "epochs": 240,
    "batch_size": 128,
    "drop_last": True,
    "label_smoothing": 0.0,
    "validation": 0.0,
    "lr": 0.2,
    "decay_norm_and_bias": False,
    "gradient_clip": None,
    "optimizer": {
        "_target_": "torch.optim.SGD",
        "_partial_": True,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "nesterov": True,
    },
    "schedule": {
        "_target_": "gda.training.schedules.Cosine",
        "minimum": 2e-3,
        "warmup_epochs": 10,
        "warmup_lr": 1e-4,
    },
    "train_transforms": {
        "crop": {
            "_target_": "gda.data.transforms.RandomResizedCrop",
            "size": 32,
            "scale": [0.08, 1.0],
            "interpolation": "random",
        },
        "flip": {"_target_": "gda.data.transforms.HorizontalFlip", "probability": 0.5},
    },
    "test_transforms": {
        "resize": {"_target_": "gda.data.transforms.Resize", "size": 36},
        "crop": {"_target_": "gda.data.transforms.CenterCrop", "size": 32},
    },
}


@pytest.mark.parametrize("published", [CRD, W2S], ids=["crd", "w2s"])
def test_recipes_are_the_published_ones(published: dict[str, Any], compose: Compose) -> None:
    recipe = compose(f"recipe={published['name']}", "dataset=cifar100")["recipe"]
    assert {key: recipe[key] for key in published} == published


@pytest.mark.parametrize(
    ("student", "rate"),
    [("resnet20", 0.05), ("resnet8x4", 0.05), ("mobilenetv2", 0.01), ("shufflenetv1", 0.01)],
)
def test_crd_has_two_learning_rates(student: str, rate: float, compose: Compose) -> None:
    from gda.config.schema import Recipe

    recipe = Recipe(**compose("recipe=crd", "dataset=cifar100")["recipe"])
    assert recipe.learning_rate(student) == rate


@pytest.mark.parametrize(
    ("recipe", "mean", "std"),
    [
        ("crd", [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]),
        ("w2s", [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    ],
)
def test_statistics_of_cifar100_follow_the_recipe(
    recipe: str, mean: list[float], std: list[float], compose: Compose
) -> None:
    dataset = compose(f"recipe={recipe}", "dataset=cifar100")["dataset"]
    assert (dataset["mean"], dataset["std"]) == (mean, std)


@pytest.mark.parametrize("recipe", ["crd", "w2s"])
def test_nothing_is_held_out_where_the_published_results_hold_nothing_out(
    recipe: str, compose: Compose
) -> None:
    assert compose(f"recipe={recipe}", "dataset=cifar100")["dataset"]["validation"] == 0
    held = compose(f"recipe={recipe}", "dataset=cifar100", "dataset.validation=0.1")
    assert held["dataset"]["validation"] == 0.1


def test_the_digits_hold_out_validation_images(compose: Compose) -> None:
    assert compose()["dataset"]["validation"] > 0


@pytest.mark.parametrize(
    ("distiller", "ground_truth_weight", "terms"),
    [
        ("vanilla", 1.0, {}),
        ("kd", 0.1, {"kd": {"weight": 0.9, "temperature": 4.0}}),
        (
            "dkd",
            1.0,
            {
                "dkd": {
                    "weight": {"value": 1.0, "warmup_epochs": 20},
                    "alpha": 1.0,
                    "beta": 8.0,
                    "temperature": 4.0,
                }
            },
        ),
        ("aug_conf", 1.0, {"aug_conf": {"weight": 1.0, "alpha_max": 0.5, "ramp": 0.3, "temperature": 1.0}}),
        ("adapt_conf", 1.0, {"adapt_conf": {"weight": 1.0, "tau": 0.5, "temperature": 1.0, "ramp": 0.0}}),
    ],
)
def test_distillers_have_their_own_published_defaults(
    distiller: str, ground_truth_weight: float, terms: dict[str, Any], compose: Compose
) -> None:
    node = compose(f"distiller={distiller}")["distiller"]
    assert node["ground_truth_weight"] == ground_truth_weight
    shown = {name: {k: v for k, v in term.items() if k != "_target_"} for name, term in node["terms"].items()}
    assert shown == terms
