"""Where images come from: data sets, batched transforms and the device-resident loader."""

from gda.data.dataset import ImageDataset, ImageSplit
from gda.data.loader import Batch, TensorLoader
from gda.data.source import DatasetFacts, ImageSource

__all__ = ["Batch", "DatasetFacts", "ImageDataset", "ImageSource", "ImageSplit", "TensorLoader"]
