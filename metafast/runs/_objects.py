"""Objects with a state, such as models and optimizers: what of them is stored, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def named_objects(model: Any, optimizer: Any, stateful: dict[str, Any]) -> dict[str, Any]:
    """The objects that a checkpoint has, by name."""
    named = {"model": model, "optimizer": optimizer, **stateful}
    return {name: value for name, value in named.items() if value is not None}


def capture(name: str, value: Any) -> Any:
    """The state of one."""
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if not (hasattr(value, "state_dict") and hasattr(value, "load_state_dict")):
        raise TypeError(
            f"{name} is a {type(value).__name__}, expected an object with state_dict() and load_state_dict(); "
            "plain values go into extras={...}"
        )
    state = value.state_dict()
    # torch modules return an OrderedDict subclass-free mapping with a _metadata attribute that only pickle keeps
    return dict(state) if isinstance(value, torch.nn.Module) else state


def apply(value: Any, state: Any) -> None:
    """Gives one its state back."""
    if isinstance(value, torch.Generator):
        value.set_state(state)
    elif isinstance(value, np.random.Generator):
        value.bit_generator.state = state
    else:
        value.load_state_dict(state)


def check_objects(step: int, stored: dict[str, Any], objects: dict[str, Any]) -> None:
    """Raises where objects are not those of a checkpoint, before anything changes."""
    if set(stored) != set(objects):
        raise ValueError(
            f"the checkpoint of step {step} holds {sorted(stored)}, restore was given {sorted(objects)}; "
            "give the same objects by the same names as to save"
        )
    for name, value in objects.items():
        if isinstance(value, torch.nn.Module):
            _check_module(step, name, value.state_dict(), stored[name])
        elif isinstance(value, torch.optim.Optimizer):
            have = [len(group["params"]) for group in value.param_groups]
            came = [len(group["params"]) for group in stored[name]["param_groups"]]
            if have != came:
                raise ValueError(
                    f"{name}: the checkpoint of step {step} has parameter groups of {came} parameters, "
                    f"this optimizer has {have}; build it from the same parameters and groups"
                )


def _check_module(step: int, name: str, have: Mapping[str, Any], came: Mapping[str, Any]) -> None:
    missing, unexpected = sorted(set(have) - set(came)), sorted(set(came) - set(have))
    shapes = [
        f"{key}: {tuple(came[key].shape)} stored, {tuple(have[key].shape)} here"
        for key in have
        if key in came
        and isinstance(have[key], Tensor)
        and isinstance(came[key], Tensor)
        and have[key].shape != came[key].shape
    ]
    if missing or unexpected or shapes:
        problems = [f"not stored: {missing[:5]}"] * bool(missing) + [f"not in this model: {unexpected[:5]}"] * bool(
            unexpected
        )
        raise ValueError(
            f"{name} does not fit the checkpoint of step {step} ({'; '.join(problems + shapes[:5])}); "
            "build the model with the run's config"
        )
