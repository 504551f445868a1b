"""What kind of file is this? Magika's neural network tells from the content alone."""

from magika import Magika


class Model:
    def load(self):
        self.magika = Magika()

    def predict(self, payload):
        """`payload`: the content of any file, as bytes, or as text where it was sent as text."""
        if isinstance(payload, str):
            payload = payload.encode()
        found = self.magika.identify_bytes(payload)
        return {
            "label": str(found.output.label),
            "mime": found.output.mime_type,
            "group": found.output.group,
            "score": round(float(found.score), 4),
        }
