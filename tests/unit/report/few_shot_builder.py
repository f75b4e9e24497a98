"""A builder of synthetic few-shot studies: run folders of the three few-shot tasks."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from study_builder import StudyBuilder, group_of


class FewShotBuilder(StudyBuilder):
    """Writes the runs of the three few-shot tasks."""

    FIGURE = "5-way 1-shot accuracy on novel classes"

    def facts(self, name: str, seed: int, **changes) -> dict:
        """Facts of a few-shot run: teacher resnet12, student resnet36, judged with one shot."""
        facts = super().facts(name, seed)
        if facts["teacher"]:
            facts |= {"teacher": "resnet12", "pair": "resnet12 -> resnet36"}
        else:
            facts |= {"pair": "resnet36"}
        facts |= {
            "dataset": "mini_imagenet",
            "recipe": "few_shot_meta",
            "student": "resnet36",
            "figure": "1shot",
            "figure_text": self.FIGURE,
            "encoder_run": {"group": "e" * 12, "seed": 0, "select": "last"},
            "encoder_weights": "runs/teachers/e/seed0/last.pt",
        }
        return facts | changes

    def rows(self, name: str, seed: int, rows: list[dict], best: int | None, task: str, **changes) -> Path:
        """Write a finished run from its rows; `best` is the epoch of the best validation figure."""
        path = self.path(name, seed)
        path.mkdir(parents=True)
        selection = "none" if best is None else "validation"
        facts = self.facts(name, seed, **({"selection": selection, "task": task} | changes))
        (path / "run.json").write_text(json.dumps(facts))
        trained = [row for row in rows if row["epoch"] > 0]
        figure = f"test_{facts['figure']}"
        oracle = max(trained, key=lambda row: row.get(figure, -1))
        result = {
            "last": trained[-1],
            "best": next((row for row in trained if row["epoch"] == best), None),
            f"{figure}_oracle": oracle.get(figure),
            "oracle_epoch": oracle["epoch"],
        }
        last = trained[-1]["epoch"]
        status = {"state": "done", "epoch": last, "epochs": last, "error": None, "result": result}
        (path / "status.json").write_text(json.dumps(status))
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def meta(self, name: str, seed: int, last: float, best: float, **changes) -> Path:
        """Write a meta_baseline run of four epochs, the third one the best."""
        distilled = name.partition(" ")[0] != "vanilla"
        known = {"test_agreement": 71.5, "test_teacher_kl": 0.25} if distilled else {}
        rows: list[dict] = [{"epoch": 0, "teacher_test_1shot": 60.5, "teacher_test_1shot_interval": 0.7}]
        for epoch, value in enumerate((last - 2, last - 1, best, last), 1):
            rows.append(
                {
                    "epoch": epoch,
                    "validation_1shot": value + 1,
                    "validation_1shot_interval": 0.81,
                    "validation_5shot": value + 16,
                    "test_1shot": value,
                    "test_1shot_interval": 0.72,
                    "test_5shot": value + 15,
                    "test_5shot_interval": 0.55,
                    "test_loss": 0.95,
                    "test_ece": 0.0625,
                    "temperature": 10.0 + epoch / 4,
                    **known,
                }
            )
        return self.rows(name, seed, rows, 3, "meta_baseline", **changes)

    def classifier(self, name: str, seed: int, last: float, **changes) -> Path:
        """Write a few_shot_classifier run of ten epochs without validation, evaluated on every fifth."""
        rows: list[dict] = [{"epoch": 0, "teacher_test_1shot": 60.5, "teacher_base_test_top1": 79.0}]
        for epoch in range(1, 11):
            rows.append({"epoch": epoch, "base_test_top1": 70.0 + epoch, "base_test_ece": 0.03125})
            rows[-1] |= {"base_test_agreement": 81.0, "base_test_teacher_kl": 0.5}
            if epoch % 5 == 0:
                rows[-1] |= {"test_1shot": last - 10 + epoch, "test_1shot_interval": 0.7}
                rows[-1] |= {"test_5shot": last + 20, "test_5shot_interval": 0.5}
        changes = {"recipe": "few_shot_classifier", "encoder_run": None, "encoder_weights": None} | changes
        return self.rows(name, seed, rows, None, "few_shot_classifier", **changes)

    def test(
        self,
        name: str,
        seed: int,
        shares: Mapping[str, np.ndarray],
        episodes: str = "same",
        config: str | None = None,
        base: float | None = None,
        tested: str | None = None,
        **changes,
    ) -> Path:
        """Write a few_shot_test run from the shares of its episodes.

        `episodes` makes the fingerprints; `tested` names the tested run by its group.
        """
        row: dict = {"epoch": 1} | ({} if base is None else {"base_test_top1": base})
        for figure, values in shares.items():
            row |= {figure: 100 * float(values.mean()), f"{figure}_interval": half_width(values)}
            if figure.endswith("shot"):
                row[f"{figure}_batch_interval"] = half_width(values.reshape(-1, 4).mean(axis=1))
        encoder = None if tested is None else {"group": tested, "seed": seed, "select": "last"}
        changes = {
            "encoder_run": encoder,
            "teacher_run": None,
            "vanilla_group": group_of("vanilla test"),
        } | changes
        distiller, _, alignment = name.partition(" ")[0].partition("+")
        if alignment:
            changes["twin_group"] = group_of(f"{distiller} test")
        path = self.rows(name, seed, [row], None, "few_shot_test", **changes)
        content = {figure: np.ascontiguousarray(values) for figure, values in shares.items()}
        prints = {figure: f"{episodes}:{figure}:{len(values)}" for figure, values in shares.items()}
        save_file(content, path / "episodes.safetensors", metadata=prints)
        if config is not None:
            (path / "config.yaml").write_text(config)
        return path


def half_width(shares: np.ndarray) -> float:
    """Half of the 95 % interval of some shares, in percentage points."""
    from scipy import stats

    quantile = stats.t.ppf(0.975, len(shares) - 1)
    return float(100 * quantile * shares.std(ddof=1) / math.sqrt(len(shares)))


def shares(mean: float, seed: int, episodes: int = 80, probe: int = 40) -> dict[str, np.ndarray]:
    """Shares of 1 and 5 shots with AUC and probe: hard and easy episodes are so for all runs."""
    hardness = np.random.default_rng(7).normal(0, 0.1, episodes)
    noise = np.random.default_rng(1000 + seed)
    found = {}
    for shot, gain in ((1, 0.0), (5, 0.15)):
        for reading, count, shift in (
            ("", episodes, 0.0),
            ("_auc", episodes, 0.05),
            ("_probe", probe, -0.05),
        ):
            own = mean + gain + shift + hardness[:count] + noise.normal(0, 0.02, count)
            found[f"test_{shot}shot{reading}"] = np.clip(own, 0, 1)
    return found
