"""Forecasters of series."""

from __future__ import annotations

from torch import Tensor, nn

from metafast._checks import integer
from metafast.models._small import _dropout, _seeded, _sizes


class LSTMForecaster(nn.Module):
    """An LSTM over the past of a series; a linear layer makes all steps of the forecast from its last hidden state.

    Args:
        horizon: steps to forecast.
        features: numbers per step of the past.
        hidden: units of each layer.
        layers: of the LSTM.
        dropout: of the last hidden state, and between layers, in [0, 1).
        seed: of the initial weights; None draws from the global generator.

    Raises:
        TypeError: a size that is no integer, a dropout that is no number.
        ValueError: a size below 1, or a dropout outside [0, 1).

    Example:
        >>> import torch
        >>> LSTMForecaster(24, hidden=16, seed=0)(torch.zeros(2, 48)).shape
        torch.Size([2, 24])

    Source:
        S. Hochreiter, J. Schmidhuber, Long Short-Term Memory, Neural Computation 1997.
    """

    def __init__(
        self,
        horizon: int,
        *,
        features: int = 1,
        hidden: int = 64,
        layers: int = 1,
        dropout: float = 0.5,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        horizon, features, hidden = _sizes(horizon=horizon, features=features, hidden=hidden)
        layers = integer("layers", layers, minimum=1)
        dropout = _dropout(dropout)
        with _seeded(seed):
            self.lstm = nn.LSTM(features, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(hidden, horizon)

    def forward(self, past: Tensor) -> Tensor:
        """Forecasts `[N, horizon]` of pasts `[N, length]`, or `[N, length, features]`."""
        states, _ = self.lstm(past.unsqueeze(-1) if past.dim() == 2 else past)
        forecast: Tensor = self.head(self.dropout(states[:, -1]))
        return forecast
