"""The file formats that a model is exported in, each held against the model in eager mode.

Files are made and checked in memory, from the bytes that will be written: what fails never reaches
the disk.
"""

import io
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

import safetensors.torch
import torch
from torch import Tensor

from gda.errors import UserError
from gda.interchange.eager_model import Deviation, EagerModel, outputs
from gda.models.exported import WEIGHTS
from gda.suggestions import did_you_mean


class FormatFailed(UserError):
    """A format that can't hold this model, or whose outputs are not the model's."""


@dataclass(frozen=True)
class CheckedFile:
    """A file that has passed its check.

    Attributes:
        format: Its format.
        data: Its content.
        deviation: Its distance from the eager outputs.
    """

    format: "Format"
    data: bytes
    deviation: Deviation


class Format(ABC):
    """A file format.

    Attributes:
        name: What is typed after ``--formats``.
        file: Name of the file.
        tolerance: Largest allowed :attr:`Deviation.relative`.
        packages: What must be installed beside torch.
    """

    name: ClassVar[str]
    file: ClassVar[str]
    tolerance: ClassVar[float]
    packages: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def content(self, eager: EagerModel) -> bytes:
        """Returns the file's content."""

    @abstractmethod
    def outputs(self, data: bytes, eager: EagerModel) -> list[Tensor]:
        """Reads the content back and returns its logits of each of ``eager.batches``."""

    def checked(self, eager: EagerModel) -> CheckedFile:
        """Makes the file and holds its outputs against the eager ones.

        Raises:
            FormatFailed: It can't be made of this model, or its outputs are too far off.
        """
        try:
            data = self.content(eager)
            deviation = eager.deviation(self.outputs(data, eager))
        except Exception as error:  # exporters and runtimes raise errors of many kinds
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise FormatFailed(f"{self.file} can't be made of this model: {reason}") from error
        if not deviation.relative <= self.tolerance:
            raise FormatFailed(
                f"{self.file} was not written: its logits are off by {deviation.relative:.1e} of the largest "
                f"logit, and {self.tolerance:.0e} is allowed"
            )
        return CheckedFile(self, data, deviation)


class SafeTensors(Format):
    """The weights by name, and nothing else."""

    name = "safetensors"
    file = WEIGHTS
    tolerance = 0.0  # the same numbers in the same code

    def content(self, eager: EagerModel) -> bytes:
        """Serialises the state dictionary; tied weights are written once for each name."""
        state = {key: value.detach().clone().contiguous() for key, value in eager.model.state_dict().items()}
        return _with_sorted_metadata(safetensors.torch.save(state, {"format": "pt", **eager.metadata}))

    def outputs(self, data: bytes, eager: EagerModel) -> list[Tensor]:
        """Loads the weights into a fresh model."""
        model = eager.build().eval()
        model.load_state_dict(safetensors.torch.load(data))
        return outputs(model, eager.batches)


class TorchExport(Format):
    """The graph as ``torch.export`` records it; read with ``torch.export.load(file).module()``."""

    name = "torch_export"
    file = "model.pt2"
    tolerance = 1e-4

    def content(self, eager: EagerModel) -> bytes:
        """Serialises the graph."""
        buffer = io.BytesIO()
        torch.export.save(eager.program, buffer)
        return buffer.getvalue()

    def outputs(self, data: bytes, eager: EagerModel) -> list[Tensor]:
        """Runs the graph that was read back."""
        return outputs(torch.export.load(io.BytesIO(data)).module(), eager.batches)


class ONNX(Format):
    """The graph in ONNX: input ``images``, output ``logits``, the batch of any size."""

    name = "onnx"
    file = "model.onnx"
    tolerance = 1e-4
    packages = ("onnx", "onnxscript", "onnxruntime")

    def content(self, eager: EagerModel) -> bytes:
        """Translates the recorded graph."""
        program = torch.onnx.export(
            eager.program,
            (eager.batches[-1],),
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
        assert program is not None
        proto = program.model_proto
        for node in proto.graph.node:
            del node.metadata_props[:]  # where in the source each node comes from
        return bytes(proto.SerializeToString())

    def outputs(self, data: bytes, eager: EagerModel) -> list[Tensor]:
        """Runs the file in ONNX Runtime."""
        import onnxruntime

        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        return [
            torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
            for images in eager.batches
        ]


FORMATS: dict[str, Format] = {each.name: each for each in (SafeTensors(), ONNX(), TorchExport())}
"""The formats by name."""


def find_formats(names: str) -> list[Format]:
    """Looks up comma-separated names.

    Raises:
        UserError: One is unknown, none is given, or a format needs packages that are not installed.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise UserError(f"--formats names no format; {did_you_mean('', FORMATS)}")
    for name in wanted:
        if name not in FORMATS:
            raise UserError(f"There is no format {name!r}; {did_you_mean(name, FORMATS)}")
    formats = [FORMATS[name] for name in dict.fromkeys(wanted)]
    for each in formats:
        absent = [package for package in each.packages if find_spec(package) is None]
        if absent:
            raise UserError(
                f"The format {each.name} needs {' and '.join(absent)}: pip install 'gda[export]', "
                "or leave it out of --formats."
            )
    return formats


def _with_sorted_metadata(data: bytes) -> bytes:
    """Makes equal weights equal files: the library writes metadata in an order that changes by the call.

    A file is the length of its header (8 bytes, little-endian), the header (JSON, padded with spaces to a
    multiple of 8), and the tensors, whose offsets count from the end of the header.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]
