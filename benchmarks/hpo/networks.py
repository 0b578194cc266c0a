"""Two other designs of the predictor, learned by gradient: a deep-kernel Gaussian process and a set transformer.

Both see configurations as the Gaussian process of `metafast.hpo` does (codes on the axes of their family), both are
trained to predict held-out configurations of a known task from a few others, with random offset and scale, as the
offset and scale of a new task are not known.
"""

import math
import time

import numpy as np
import torch
from torch import Tensor, nn

from metafast.hpo._known import Family
from metafast.hpo._posterior import Mixture

CONTEXT = 12
TARGETS = 64
SCALES = torch.linspace(-2, 2, 8)


class Inputs:
    """Codes of a family and features of its tasks as what networks take."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.names = sorted({name for task in family.tasks for name in task.features})
        table = np.array([[task.features.get(name, math.nan) for name in self.names] for task in family.tasks])
        table = table.reshape(len(family.tasks), -1)
        self.middle, self.spread = np.nanmean(table, 0), np.nanstd(table, 0) + 1e-6
        self.categories = [
            None if axis.numeric else np.unique(family.codes[:, column])
            for column, axis in enumerate(family.axes.values())
        ]

    def configs(self, codes: np.ndarray) -> Tensor:
        parts = []
        for column, categories in enumerate(self.categories):
            values = codes[:, column]
            if categories is None:
                here = np.isfinite(values)
                parts += [np.where(here, 2 * values - 1, 0.0), here.astype(float)]
            else:
                parts += [(values == category).astype(float) for category in categories]
        return torch.tensor(np.stack(parts, 1), dtype=torch.float32)

    def task(self, features) -> Tensor:
        row = np.array([features.get(name, math.nan) for name in self.names])
        return torch.tensor(np.nan_to_num((row - self.middle) / self.spread).clip(-3, 3), dtype=torch.float32)


class DeepKernel(nn.Module):
    """Mean and basis functions are a network of configuration and features; the rest is a Gaussian process."""

    def __init__(self, inputs: int, features: int, width: int = 64, basis: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs + features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.out = nn.Linear(width, 2 + basis)
        self.length = nn.Parameter(torch.tensor(0.0))
        self.noise = nn.Parameter(torch.tensor(-3.0))
        self.inputs = inputs

    def forward(self, x: Tensor, features: Tensor, n: int, y: Tensor, wide: float, sigma: float):
        """x `[B, M, D]`, the first n observed; y `[B, n]`; returns log weights, means and variances `[B, S, M]`."""
        told = features[:, None].expand(-1, x.shape[1], -1)
        made = self.out(self.body(torch.cat([x, told], -1)))
        mean, size, basis = made[..., 0], nn.functional.softplus(made[..., 1] - 1), made[..., 2:] / 4
        gaps = torch.cdist(x[:, :n], x).square()
        local = torch.exp(-gaps * torch.exp(self.length)) * size[:, :n, None].sqrt() * size[:, None].sqrt()
        across = basis[:, :n] @ basis.mT + local
        variance = basis.square().sum(-1) + size
        scale = torch.exp(sigma * SCALES)
        logs = (-0.5 * SCALES**2).log_softmax(0).expand(len(x), -1)
        offset = (wide / scale) ** 2
        noise = torch.exp(self.noise)
        means = mean[:, None].expand(-1, len(scale), -1)
        spread = variance[:, None] + offset[None, :, None] + noise
        if n:
            full = across[:, None] + offset[None, :, None, None]
            left = full[..., :n] + (noise + 1e-4) * torch.eye(n)
            rest = y[:, None] / scale[None, :, None] - mean[:, None, :n]
            root = torch.linalg.cholesky(left)
            solved = torch.cholesky_solve(torch.cat([full, rest[..., None]], -1), root)
            means = means + (full * solved[..., -1:]).sum(-2)
            spread = (spread - (full * solved[..., :-1]).sum(-2)).clamp_min(1e-4)
            fit = -0.5 * (rest * solved[..., :n, -1]).sum(-1) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            logs = (logs + fit - n * scale.log()).log_softmax(-1)
        return logs, scale[None, :, None] * means, scale[None, :, None] ** 2 * spread


class SetTransformer(nn.Module):
    """Observed configurations attend to each other, all to the observed ones; a mixture of Gaussians comes out."""

    def __init__(self, inputs: int, features: int, width: int = 64, layers: int = 3, mixture: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs + features + 2, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out = nn.Linear(width, 3 * mixture)
        self.inputs = inputs

    def forward(self, x: Tensor, features: Tensor, n: int, y: Tensor, wide: float, sigma: float):
        told = features[:, None].expand(-1, x.shape[1], -1)
        value = torch.zeros(*x.shape[:2], 2)
        value[:, :n, 0], value[:, :n, 1] = y, 1.0
        h = self.embed(torch.cat([x, told, value], -1))
        unseen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
        unseen[:, :n] = False
        unseen.fill_diagonal_(False)
        weight, mean, size = self.out(self.body(h, mask=unseen)).chunk(3, -1)
        logs = weight.log_softmax(-1).mT  # [B, K, M]
        return logs, mean.mT, nn.functional.softplus(size).mT.square() + 1e-4


def negative_log(logs: Tensor, means: Tensor, variances: Tensor, targets: Tensor) -> Tensor:
    each = -0.5 * (targets[:, None] - means).square() / variances - 0.5 * torch.log(2 * math.pi * variances)
    logs = logs if logs.dim() == 3 else logs[..., None]
    return -(logs + each).logsumexp(1)


class Learned:
    """One of the two, trained on a family of tasks."""

    def __init__(self, kind: type[nn.Module], family: Family, seconds: float, seed: int = 0) -> None:
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        self.inputs = Inputs(family)
        logs = np.log([task.spread for task in family.tasks])
        centres = np.array([task.centre for task in family.tasks])
        self.centre, self.middle = float(centres.mean()), float(logs.mean())
        self.sigma = math.sqrt(float(logs.var()) + 0.04)
        self.wide = math.sqrt(float(centres.var()) / math.exp(2 * self.middle) + 0.25)
        x = self.inputs.configs(family.codes)
        told = torch.stack([self.inputs.task(task.features) for task in family.tasks])
        z = torch.tensor(np.stack([task.curves[:, -1] for task in family.tasks]))
        self.model = kind(x.shape[1], told.shape[1])
        optimizer = torch.optim.AdamW(self.model.parameters(), 2e-3, weight_decay=1e-2)
        began = time.process_time()
        self.updates = 0
        while (spent := time.process_time() - began) < seconds:
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * (1 - spent / seconds)
            n = int(rng.integers(0, CONTEXT + 1))
            batch = rng.integers(0, len(z), 8)
            rows = []
            for task in batch:
                order = rng.permutation(len(x))
                if rng.random() < 0.5:  # as a search observes: the better ones first
                    head = order[: 4 * CONTEXT]
                    head = head[np.argsort(-z[task, head].numpy())]
                    order = np.concatenate([head[:n], np.setdiff1d(order, head[:n])[rng.permutation(len(x) - n)]])
                rows.append(order[: n + TARGETS])
            rows = torch.tensor(np.array(rows))
            values = z[torch.tensor(batch)[:, None], rows]
            scale = torch.exp(self.sigma * torch.randn(8, 1))
            values = scale * values + self.wide * torch.randn(8, 1)
            seen = told[batch] * (torch.rand(8, 1) < 0.7)
            made = self.model(x[rows], seen, n, values[:, :n], self.wide, self.sigma)
            part = (made[0] if made[0].dim() == 2 else made[0][:, :, n:]), made[1][:, :, n:], made[2][:, :, n:]
            loss = (negative_log(*part, values[:, n:]) + scale.log()).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            self.updates += 1

    @torch.no_grad()
    def believe(self, codes: np.ndarray, features, observed: np.ndarray) -> Mixture:
        """Of `[M, H]` codes, the first n observed."""
        n, unit = len(observed), math.exp(self.middle)
        x = self.inputs.configs(codes)[None]
        y = torch.tensor((observed - self.centre) / unit, dtype=torch.float32)[None]
        logs, means, variances = self.model(x, self.inputs.task(features)[None], n, y, self.wide, self.sigma)
        weights = logs[0].exp().double()
        mean, variance = self.centre + unit * means[0].double().numpy(), unit**2 * variances[0].double().numpy()
        if weights.dim() == 1:
            return Mixture(weights.numpy(), mean, variance)
        return Sampled(weights.numpy(), mean, variance)


class Sampled(Mixture):
    """A mixture whose weights differ from point to point, `[K, M]`."""

    @property
    def mean(self) -> np.ndarray:
        return (self.weights * self.means).sum(0)

    def below(self, values: np.ndarray) -> np.ndarray:
        from metafast.hpo._posterior import phi

        return (self.weights * phi((values - self.means) / np.sqrt(self.variances))).sum(0)

    def improvement(self, best) -> np.ndarray:
        pairs = zip(self.means, self.variances, strict=True)
        each = [Mixture(np.ones(1), mean[None], variance[None]).improvement(best) for mean, variance in pairs]
        return (self.weights * np.array(each)).sum(0)

    def log_density(self, values: np.ndarray) -> np.ndarray:
        each = -0.5 * (values - self.means) ** 2 / self.variances - 0.5 * np.log(2 * math.pi * self.variances)
        return np.log((self.weights * np.exp(each)).sum(0) + 1e-300)
