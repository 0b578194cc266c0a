"""A speech recogniser in the manner of Deep Speech."""

from __future__ import annotations

from torch import Tensor, nn

from metafast.models._small import _dropout, _seeded, _sizes


class DeepSpeech(nn.Module):
    """Convolution over time, GRU layers, then symbols at each step, to be trained by CTC.

    Deep Speech 2 has two convolutions, seven bidirectional layers and batch norm; this one reads forward only and has
    one convolution, so that it learns short utterances on a CPU.

    Args:
        bands: numbers per frame of the spectrogram.
        symbols: outputs per step; number 0 is CTC's blank.
        channels: of the convolution.
        hidden: units of each GRU layer.
        layers: GRU layers.
        stride: frames per step of the output.
        dropout: of the last states, and between layers, in [0, 1).
        seed: of the initial weights; None draws from the global generator.

    Raises:
        TypeError: a size that is no integer, a dropout that is no number.
        ValueError: a size below 1, or a dropout outside [0, 1).

    Example:
        >>> import torch
        >>> DeepSpeech(16, 11, hidden=8, seed=0)(torch.zeros(2, 96, 16)).shape
        torch.Size([2, 32, 11])

    Source:
        D. Amodei et al., Deep Speech 2: End-to-End Speech Recognition in English and Mandarin, ICML 2016; A. Graves et
        al., Connectionist Temporal Classification, ICML 2006.
    """

    def __init__(
        self,
        bands: int,
        symbols: int,
        *,
        channels: int = 32,
        hidden: int = 64,
        layers: int = 2,
        stride: int = 3,
        dropout: float = 0.0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        bands, symbols, channels, hidden = _sizes(bands=bands, symbols=symbols, channels=channels, hidden=hidden)
        layers, stride = _sizes(layers=layers, stride=stride)
        dropout = _dropout(dropout)
        with _seeded(seed):
            self.frames = nn.Sequential(nn.Conv1d(bands, channels, 2 * stride + 1, stride, padding=stride), nn.ReLU())
            self.recurrent = nn.GRU(channels, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(hidden, symbols)

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Scores `[N, steps, symbols]` of spectrograms `[N, frames, bands]`; steps are frames / stride, rounded up."""
        states, _ = self.recurrent(self.frames(spectrogram.transpose(1, 2)).transpose(1, 2))
        scores: Tensor = self.head(self.dropout(states))
        return scores
