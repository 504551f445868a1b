# mypy: ignore-errors
"""How likely is a text to be offensive? A linear model over n-grams, loaded by its package's import."""

from profanity_check import predict_prob


class Model:
    def predict(self, payload):
        """`payload`: {"text": …}."""
        return {"score": round(float(predict_prob([payload["text"]])[0]), 3)}
