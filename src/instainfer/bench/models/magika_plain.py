# mypy: ignore-errors
"""What kind of file is this? Magika's neural network tells from the content alone."""

from magika import Magika


class Model:
    def load(self):
        self.magika = Magika()

    def predict(self, payload):
        """`payload`: the content of any file."""
        found = self.magika.identify_bytes(payload)
        return {"label": str(found.output.label), "score": round(float(found.score), 3)}
