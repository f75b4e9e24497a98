"""Imported once by the server that forks the child processes: what every run imports and builds first."""

import sklearn.datasets  # noqa: F401
import torch

import gda.app  # noqa: F401
from gda.models import create_model

torch.set_num_threads(1)
with torch.device("meta"):  # its first use is slow
    create_model("resnet8", num_classes=2)
