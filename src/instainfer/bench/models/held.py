# mypy: ignore-errors
"""The function, and a call that lasts as long as it says: so that further instances can be had to order."""

import time

import main


class Model(main.Model):
    def predict(self, payload):
        if isinstance(payload, dict) and "hold_s" in payload:
            time.sleep(payload["hold_s"])
            return {}
        return super().predict(payload)
