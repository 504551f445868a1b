"""How likely is a text to be offensive? A linear model over n-grams, loaded by its package's import."""

from profanity_check import predict_prob


def handler(event):
    texts = event["texts"] if "texts" in event else [event["text"]]
    scores = [round(float(score), 4) for score in predict_prob(texts)]
    return {"scores": scores} if "texts" in event else {"offensive": scores[0] >= 0.5, "score": scores[0]}
