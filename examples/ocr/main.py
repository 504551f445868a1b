"""Read the text in a small image, such as a captcha."""

import ddddocr


class Model:
    def load(self):
        self.reader = ddddocr.DdddOcr(show_ad=False)

    def predict(self, payload):
        """`payload`: the bytes of a PNG or JPEG."""
        return {"text": self.reader.classification(payload)}
