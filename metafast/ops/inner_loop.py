r"""K steps of adaptation for every task of a batch, the losses after them, and their exact meta-gradient.

With M the mask of adapted parameters, L_t the support loss of task t (at step k on its mini-batch) and Q_t its query
loss:

    g_k     = ∇L_t(θ_k)
    d_k     = g_k + weight_decay θ_k + prox (θ_k - θ_0)
    u_k     = d_k                                              rule 0: gradient descent
    u_k     = v_k,  v_k = momentum v_{k-1} + d_k,  v_{-1} = 0  rule 1: with momentum
    u_k     = (m_k / (1 - β1^{k+1})) / (sqrt(v_k / (1 - β2^{k+1})) + eps)      rule 2: Adam, β1 = momentum
    θ_{k+1} = θ_k - M ⊙ rates_k ⊙ u_k
    task_losses[t] = Σ_k query_weights[k] Q_t(θ_k)
    meta-loss      = Σ_t task_weights[t] task_losses[t]        (task_weights None: 1 / T)

The meta-gradient is the backward recursion, for k = K-1 .. 0 from λ_K = w_t query_weights[K] ∇Q_t(θ_K):

    λ^u = -M ⊙ rates_k ⊙ λ_{k+1}
    λ^d = the rule's own backward of λ^u (and of what later steps want from its states)
    λ_k = λ_{k+1} + ∇²L_t(θ_k) λ^d + (weight_decay + prox) λ^d + w_t query_weights[k] ∇Q_t(θ_k)
    grad_rates_k   = -Σ_t M ⊙ u_k ⊙ λ_{k+1},  summed over the elements that share a rate
    grad_weights   = λ_0 - prox Σ_k λ^d_k,  summed over tasks where they share the start
    grad_support_x = Σ_k d<g_k, λ^d_k> / dx

order 2 is exact; order 1 takes every g_k as a constant (the Hessian and the mixed term drop out, all else stays);
order 0 leaves the gradients zero. Through Adam's root the derivative is 0 where v_k = 0.

Shapes: T tasks, S support and Q query examples, K steps, C logits, P parameters (`_program.py` has the program).

    weights        [P] or [T, P] (then grad_weights is [T, P])
    rates          [1 or K, R], R = 1, number of parameters, or P
    support_x      [T, S, ...] in the weights' dtype or int64 tokens; query_x likewise with Q
    support_y      int64 [T, S], or [T, S, C] for mean squared error
    support_mask   bool [T, S]: False is padding, which nothing reads; query_mask likewise
    classes        int64 [T]: task t has the classes 0 .. classes[t] - 1
    batches        int64 [K, B] or [T, K, B]: the support examples of each step; None: all
    stats          [1 or K+1, S_total]: fixed statistics of batch norms of mode 1, row k at θ_k
    query_weights  float64 [K+1]; a pass whose weight is 0 is skipped, but for the logits and row K of batch_stats
    task_weights   float64 [T]; a task of weight 0 takes no part in any gradient, nor in batch_stats, whatever it holds
    task_losses [T], support_losses [T, K], query_losses [T, K+1] (NaN: skipped), logits [T, Q, C] at θ_K (padding 0)
    adapted [T, P] is θ_K; batch_stats [K+1, S_total] are the means over tasks of each batch norm's mean and unbiased
    variance in the support pass at θ_k, and in row K in the query pass at θ_K

A loss is the mean over the task's valid examples (0 where there is none). `memory_budget` in bytes (-1: none) may make
a kernel recompute instead of store. A task whose loss is not finite changes no other task's results.

1. Finn, Abbeel & Levine, Model-agnostic meta-learning, ICML 2017.
2. Kemaev et al., Scalable meta-learning via mixed-mode differentiation, ICML 2025 (the recursion).
3. Antoniou, Edwards & Storkey, How to train your MAML, ICLR 2019 (query_weights, per-step rates and statistics).
4. Rajeswaran et al., Meta-learning with implicit gradients, NeurIPS 2019 (prox).
"""

from __future__ import annotations

from typing import Any

import torch

from . import _inner_loop_reference, _inner_loop_samples, _triton_inner_loop
from ._define import define

INPUTS = (
    "Tensor program, Tensor attributes, Tensor weights, Tensor rates, "
    "Tensor support_x, Tensor support_y, Tensor? support_mask, Tensor query_x, Tensor query_y, Tensor? query_mask, "
    "Tensor? classes, Tensor? batches, Tensor? stats, Tensor query_weights, Tensor? task_weights"
)
OPTIONS = (
    "int steps, int order, int rule, float momentum, float beta2, float eps, float weight_decay, float prox, "
    "int seed, int first_task, int memory_budget"
)
OUTPUTS = (
    "Tensor(a!) task_losses, Tensor(b!)? support_losses, Tensor(c!)? query_losses, Tensor(d!)? logits, "
    "Tensor(e!)? grad_weights, Tensor(f!)? grad_rates, Tensor(g!)? grad_support_x, Tensor(h!)? grad_query_x, "
    "Tensor(i!)? adapted, Tensor(j!)? batch_stats"
)
SCHEMA = f"inner_loop({INPUTS}, {OPTIONS}, {OUTPUTS}) -> ()"


def sample_inputs(device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> list[tuple[Any, ...]]:
    """Argument tuples for several programs, rules, orders, rates, masks and mini-batches."""
    return _inner_loop_samples.inner_loop(device, dtype, seed)


OP = define(SCHEMA, _inner_loop_reference.inner_loop, sample_inputs, triton=_triton_inner_loop.inner_loop)
