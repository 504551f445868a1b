# mypy: ignore-errors
"""The vector of a text. Loaded by hand as fast as it goes: the module is built without numbers, and the file is
mapped as its tensors."""

import torch
from architecture import build
from torch.nn import init
from weights import PATH


def hollow():
    """The module on the meta device. Initialisers are passed over there too: they write nothing, and yet import
    hundreds of modules and walk over every layer."""
    kept = {name: getattr(init, name) for name in dir(init) if name.endswith("_") and name[0] != "_"}
    for name in kept:
        setattr(init, name, lambda tensor, *args, **kwargs: tensor)
    try:
        with torch.device("meta"):
            return build()
    finally:
        for name, function in kept.items():
            setattr(init, name, function)


class Model:
    def load(self):
        self.net = hollow()
        self.net.load_state_dict(torch.load(PATH, mmap=True), assign=True)
        embeddings = self.net.embeddings  # its buffers that no file has
        longest = self.net.config.max_position_embeddings
        embeddings.position_ids = torch.arange(longest).expand((1, -1))
        embeddings.token_type_ids = torch.zeros((1, longest), dtype=torch.long)
        self.net.eval()

    def predict(self, payload):
        """`payload`: {"tokens": [...]}, ids of BERT's vocabulary."""
        with torch.inference_mode():
            vector = self.net(torch.tensor([payload["tokens"]])).pooler_output[0]
        return {"vector": [f"{float(number):.4g}" for number in vector[:4]]}
