# mypy: ignore-errors
"""The vector of a text. Loaded as it is written everywhere: build, read, copy in."""

import torch
from architecture import build
from weights import PATH


class Model:
    def load(self):
        self.net = build()
        self.net.load_state_dict(torch.load(PATH))
        self.net.eval()

    def predict(self, payload):
        """`payload`: {"tokens": [...]}, ids of BERT's vocabulary."""
        with torch.inference_mode():
            vector = self.net(torch.tensor([payload["tokens"]])).pooler_output[0]
        return {"vector": [f"{float(number):.4g}" for number in vector[:4]]}
