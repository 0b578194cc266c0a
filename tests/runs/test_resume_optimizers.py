"""A saved and restored optimizer takes the same steps as one that never stopped, bit for bit."""

import pytest
import torch

from metafast import optim
from metafast.data import Batches
from metafast.runs import Run

OPTIMIZERS = {
    "torch AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "torch SGD": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "AdamW": lambda p: optim.AdamW(p, lr=1e-2),
    "AdamW amsgrad": lambda p: optim.AdamW(p, lr=1e-2, amsgrad=True),
    "AdamW global": lambda p: optim.AdamW(p, lr=1e-2, hypergrad="global"),
    "AdamW tensor exact": lambda p: optim.AdamW(p, lr=1e-2, hypergrad="tensor", hyper_exact=True),
    "AdamW element": lambda p: optim.AdamW(p, lr=1e-2, hypergrad="element"),
    "AdamW groups": lambda p: optim.AdamW([{"params": p[:2]}, {"params": p[2:], "lr": 1e-3}], hypergrad="group"),
    "AdamW bf16 states": lambda p: optim.AdamW(
        p, lr=1e-2, state_dtype=torch.bfloat16, stochastic_rounding=True, seed=3
    ),
    "SGD tensor": lambda p: optim.SGD(p, lr=1e-2, momentum=0.9, hypergrad="tensor"),
}


def make(build):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Dropout(0.2), torch.nn.Linear(8, 3))
    opt = build(list(model.parameters()))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 20)
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    return model, opt, {"schedule": schedule, "batches": Batches(x, x[:, :3].argmax(1), batch_size=7, seed=2)}


def train(model, opt, stateful, steps):
    stream = stateful["batches"].forever()
    losses = []
    for _ in range(steps):
        x, y = next(stream)
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        stateful["schedule"].step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_saved_and_ten_more(name, tmp_path):
    model, opt, stateful = make(OPTIMIZERS[name])
    with Run.create(tmp_path) as run:
        train(model, opt, stateful, 10)
        run.save(10, model, opt, **stateful)
        want = train(model, opt, stateful, 10)

    again, again_opt, again_stateful = make(OPTIMIZERS[name])
    torch.manual_seed(99)
    assert Run.open(run.path).restore(again, again_opt, **again_stateful).step == 10
    assert train(again, again_opt, again_stateful, 10) == want
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    if isinstance(opt, optim.AdamW):
        assert opt.learned_lr() == again_opt.learned_lr()
