"""Small models for the demo, the benchmarks and first tries: logistic regression, MLP, CNN, bag of embeddings.

Each takes `seed=`: the initial weights then depend on it alone, and the global generator is left as it was.
"""

from metafast.models._small import MLP, EmbeddingBagClassifier, LogisticRegression, SmallCNN

__all__ = ["MLP", "EmbeddingBagClassifier", "LogisticRegression", "SmallCNN"]
