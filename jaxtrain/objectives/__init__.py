"""What is minimised. An objective is `(model, batch, keys) -> Sums`; means are taken once, by the train step."""
