# mypy: ignore-errors
"""The text in a small image."""

import ddddocr


class Model:
    def load(self):
        self.reader = ddddocr.DdddOcr(show_ad=False)

    def predict(self, payload):
        """`payload`: the bytes of a PNG or JPEG."""
        return {"text": self.reader.classification(payload)}
