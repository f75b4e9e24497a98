"""The losses against the figures of the published few-shot code, which has versions of its own.

Its formulas hold our terms plus known faults; every fault is a factor, written out below, so that the whole
figure and its gradient are compared and nothing of it is taken over:

* DKD and AugConf take ``th`` (AdaptConf's tau) times the ramp as their share ``a``: with 8, ``1 - a`` is -7.
* AugConf adds the alignment twice: inside its distillation loss, where ``1 - a`` scales it, and beside it.
* AdaptConf adds the scalar alignment to every entry of a ``(batch, classes)`` matrix, so that it counts
  ``classes`` times, scaled by the mean of ``1 - a_i``; and adds it once more beside it.
* In both, the inner one has the weights 0.1 and 0.0008 whatever weights are asked for.

``epoch`` counts from 1 to 100, and the ramp ends at 25.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gda.distillers import Progress
from gda.distillers.adapt_conf import AdaptConf
from gda.distillers.functional import adapt_conf, aug_conf, dkd, fisher_rao, kd, sinkhorn

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "losses_few_shot.json").read_text())["cases"]
ARRAYS = np.load(GOLDEN / "losses_few_shot.npz")
TERM_CASES = [(case, term) for case in CASES for term in CASES[case]["terms"]]
PATTERN = re.compile(
    r"(?P<name>dkd_baseline|dkd|aug_conf|adapt_conf)\|epoch=(?P<epoch>\d+)\|th=(?P<th>[\d.]+)\|T=(?P<T>\d+)"
    r"(\|a1 b0\.5)?(\|fr=(?P<fr>[\d.]+),sk=(?P<sk>[\d.]+))?"
)


def mean_confidence(student: Tensor, teacher: Tensor, tau: float, ramp: float) -> float:
    """Mean of ``a_i`` as the published code computes it, by two exponentials."""
    own = torch.nn.functional.cross_entropy(student, student.argmax(1), reduction="none")
    other = torch.nn.functional.cross_entropy(student, teacher.argmax(1), reduction="none")
    own, other = (own / tau).exp(), (other / tau).exp()
    return ramp * (own / (own + other)).mean().item()


def ours(term: str, s: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """The golden term as a weighted sum of our functions."""

    def gda(fisher: float, transport: float) -> Tensor:
        return fisher * fisher_rao(s, t) + transport * sinkhorn(s, t)

    batch, classes = s.shape
    if term == "part: fisher_rao":
        return fisher_rao(s, t)
    if term == "part: sinkhorn":
        return sinkhorn(s, t)
    if term == "part: dkd helper a1 b0.5 T=10":
        return dkd(s, t, label, 1.0, 0.5, 10.0)
    if term == "part: gda fr=0.1,sk=0.0008":
        return gda(0.1, 0.0008)
    if term == "part: gda defaults":  # the helper's own, which no caller uses
        return gda(0.01, 0.0008)
    if term == "kd-rowwise|T=10|reduction none":  # the sum over the (batch, classes) matrix
        return batch * kd(s, t, 10.0) + batch * classes * gda(0.1, 0.0008)
    if term.startswith("kd|"):
        weights = re.search(r"fr=([\d.]+),sk=([\d.]+)", term)
        fisher, transport = map(float, weights.groups()) if weights else (0.1, 0.0008)
        return kd(s, t, float(re.search(r"T=(\d+)", term)[1])) + gda(fisher, transport)
    found = PATTERN.fullmatch(term)
    assert found, term
    threshold, temperature, epoch = float(found["th"]), float(found["T"]), int(found["epoch"])
    ramp = AdaptConf(ramp=0.25).ramp_factor(Progress(epoch - 1, 100))
    share = threshold * ramp
    match found["name"]:
        case "dkd_baseline":
            return (1 - share) * dkd(s, t, label, 1.0, 0.5, temperature)
        case "dkd":
            loss = (1 - share) * dkd(s, t, label, 1.0, 0.5, temperature)
            return loss + gda(float(found["fr"]), float(found["sk"]))
        case "aug_conf":
            inner, outer = (1 - share) * gda(0.1, 0.0008), gda(float(found["fr"]), float(found["sk"]))
            return aug_conf(s, t, share, temperature) + inner + outer
        case _:
            times = classes * (1 - mean_confidence(s.detach(), t, threshold, ramp))
            inner, outer = times * gda(0.1, 0.0008), gda(float(found["fr"]), float(found["sk"]))
            return adapt_conf(s, t, threshold, temperature, ramp) + inner + outer


@pytest.mark.parametrize(("case", "term"), TERM_CASES)
def test_few_shot_term(case: str, term: str) -> None:
    student, teacher = (
        torch.from_numpy(ARRAYS[f"{case}/{what}"]).double() for what in ("student", "teacher")
    )
    label = torch.from_numpy(ARRAYS[f"{case}/label"])
    student.requires_grad_()
    record = CASES[case]["terms"][term]
    figures = {key: value for key, value in record["float64"].items() if key != "grad"}

    loss = ours(term, student, teacher, label)
    loss.backward()

    assert loss.isfinite()
    assert student.grad.isfinite().all()
    if not any(isinstance(figure, str) for figure in figures.values()):
        assert loss.item() == pytest.approx(sum(figures.values()), rel=1e-9, abs=1e-12)

    noise = record["float32_vs_float64_grad_rel"]
    digest = record["float64"]["grad"]
    if noise is None or noise > 1e-3 or digest["n_nan"] or digest["n_inf"]:
        return  # rounding noise, a kink, or not finite in the published code
    gradient = student.grad.numpy()
    key = f"{case}/grad64/{term}"
    rows = np.ptp(ARRAYS[f"{case}/student"], axis=1) > 0  # constant rows: no Sinkhorn gradient, by choice
    if key in ARRAYS:
        error = np.linalg.norm((gradient - ARRAYS[key])[rows])
        assert error <= 1e-8 * np.linalg.norm(ARRAYS[key][rows])
    else:
        assert rows.all()
        probe = np.cos(0.7 * np.arange(gradient.size) + 0.3)
        scale = 1e-8 * digest["l2"]
        assert abs(np.linalg.norm(gradient) - digest["l2"]) <= scale
        assert abs(gradient.ravel() @ probe - digest["probe_dot"]) <= scale * np.linalg.norm(probe)
        assert np.abs(gradient.ravel()[digest["sample_index"]] - digest["sample"]).max() <= scale
