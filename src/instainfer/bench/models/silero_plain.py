# mypy: ignore-errors
"""Where somebody speaks in a recording."""

import torch
from silero_vad import get_speech_timestamps, load_silero_vad


class Model:
    def load(self):
        self.net = load_silero_vad()

    def predict(self, payload):
        """`payload`: 16-bit PCM, 16,000 samples a second."""
        sound = torch.frombuffer(bytearray(payload), dtype=torch.int16) / 32768
        return {"speech": get_speech_timestamps(sound, self.net)}
