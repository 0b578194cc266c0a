"""Small models for the demo, the benchmarks and first tries, and those of the papers and experiments.

Each takes `seed=`: the initial weights then depend on it alone, and the global generator is left as it was.
"""

from metafast.models._encoders import BertClassifier, RobertaClassifier
from metafast.models._few_shot import Conv4, OmniglotFC, ResNet12, SinusoidMLP
from metafast.models._resnet import ResNet18
from metafast.models._sequence import SequenceTransformer
from metafast.models._series import LSTMForecaster
from metafast.models._small import MLP, EmbeddingBagClassifier, LogisticRegression, SmallCNN
from metafast.models._speech import DeepSpeech
from metafast.models._text import RNNClassifier, SentenceCNN, TextCNN, TextMLP
from metafast.models._vit import ViT

__all__ = [
    "MLP",
    "BertClassifier",
    "Conv4",
    "DeepSpeech",
    "EmbeddingBagClassifier",
    "LSTMForecaster",
    "LogisticRegression",
    "OmniglotFC",
    "RNNClassifier",
    "ResNet12",
    "ResNet18",
    "RobertaClassifier",
    "SentenceCNN",
    "SequenceTransformer",
    "SinusoidMLP",
    "SmallCNN",
    "TextCNN",
    "TextMLP",
    "ViT",
]
