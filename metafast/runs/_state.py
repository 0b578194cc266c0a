"""Nested Python state as a JSON tree plus a flat table of tensors, and back, bit for bit and without pickle."""

from __future__ import annotations

import base64
import collections
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

TAG = "$"  # an object with this key is an encoded value, not a plain dict
MAX_JSON_INT_BITS = 8192  # Python refuses to parse decimal integers of more than 4300 digits

_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_PLAIN_TENSORS = (Tensor, torch.nn.Parameter, torch.nn.parameter.Buffer)


def pack(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split a nested value into a JSON tree and the tensors it refers to.

    Args:
        value: any nesting of None, bool, int, float, complex, str, bytes, list, tuple, dict, OrderedDict, Counter,
            deque, set, frozenset, range, slice, dense tensors, NumPy arrays and scalars, and torch's dtype, device and
            Size. A dict key may be any of them that hashes.

    Returns:
        ``(tree, tensors)``: ``tree`` holds only what JSON holds; ``tensors`` maps a name to a contiguous CPU tensor.
        Tensors that are one and the same view are stored once.

    Raises:
        TypeError: a value of another type (the message names its place), because only pickle could store it.
        ValueError: the value contains itself.

    Example:
        >>> tree, tensors = pack({"lr": 0.1, "state": {0: (1, None)}})
        >>> unpack(tree, tensors)
        {'lr': 0.1, 'state': {0: (1, None)}}
    """
    packer = _Packer()
    return packer.pack(value, "state"), packer.tensors


def unpack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Rebuild the value that `pack` split; tensors come back on the CPU, each with memory of its own.

    Args:
        tree: the JSON tree.
        tensors: name to tensor.

    Returns:
        The value, with the same types, order, bits and strides.

    Raises:
        ValueError: the tree names an unknown kind of value or a tensor that is not there.

    Example:
        >>> unpack({"$": "tuple", "v": [1, 2]}, {})
        (1, 2)
    """
    return _Unpacker(tensors).unpack(tree)


class _Packer:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._nodes: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._keep: list[Tensor] = []  # an address is an identity only while its tensor lives
        self._open: set[int] = set()

    def pack(self, value: Any, place: str) -> Any:
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            if value.bit_length() > MAX_JSON_INT_BITS:
                return {TAG: "int", "v": hex(value)}
            return value
        if kind is float:
            return value if math.isfinite(value) else {TAG: "float", "v": repr(value)}
        if isinstance(value, Tensor):
            return self._tensor(value, place)
        if isinstance(value, np.generic | np.ndarray):
            return self._numpy(value, place)
        if kind is complex:
            return {TAG: "complex", "v": [self.pack(value.real, place), self.pack(value.imag, place)]}
        if kind is bytes or kind is bytearray:
            return {TAG: kind.__name__, "v": base64.b64encode(value).decode("ascii")}
        if kind is torch.dtype:
            return {TAG: "dtype", "v": str(value)}
        if kind is torch.device:
            return {TAG: "device", "v": str(value)}
        if kind is range or kind is slice:
            return {TAG: kind.__name__, "v": [self.pack(x, place) for x in (value.start, value.stop, value.step)]}
        if id(value) in self._open:
            raise ValueError(f"{place} contains itself; a saved state must be a tree")
        self._open.add(id(value))
        try:
            return self._container(value, place)
        finally:
            self._open.discard(id(value))

    def _container(self, value: Any, place: str) -> Any:
        kind = type(value)
        if kind is list:
            return [self.pack(x, f"{place}[{i}]") for i, x in enumerate(value)]
        if kind is tuple or kind is torch.Size:
            name = "tuple" if kind is tuple else "size"
            return {TAG: name, "v": [self.pack(x, f"{place}[{i}]") for i, x in enumerate(value)]}
        if kind is collections.deque:
            items = [self.pack(x, f"{place}[{i}]") for i, x in enumerate(value)]
            return {TAG: "deque", "v": items, "maxlen": value.maxlen}
        if kind is set or kind is frozenset:
            items = [self.pack(x, f"an element of {place}") for x in value]
            return {TAG: kind.__name__, "v": sorted(items, key=repr)}
        if kind in (dict, collections.OrderedDict, collections.Counter):
            if kind is dict and TAG not in value and all(type(key) is str for key in value):
                return {key: self.pack(x, f"{place}[{key!r}]") for key, x in value.items()}
            pairs = [[self.pack(k, f"a key of {place}"), self.pack(x, f"{place}[{k!r}]")] for k, x in value.items()]
            return {TAG: kind.__name__, "v": pairs}
        raise TypeError(
            f"{place} is a {kind.__module__}.{kind.__qualname__}, which a record cannot hold without pickle; "
            "expected numbers, strings, bytes, tensors, NumPy arrays, or lists, tuples, dicts and sets of them: "
            "convert it first (an object with state_dict() can be passed to save() by name)"
        )

    def _tensor(self, value: Tensor, place: str) -> Any:
        if type(value) not in _PLAIN_TENSORS:
            raise TypeError(
                f"{place} is a {type(value).__name__}, expected a plain torch.Tensor; gather or convert it first "
                "(for a DTensor: full_tensor())"
            )
        if value.layout is not torch.strided or value.is_quantized or value.device.type == "meta":
            raise TypeError(
                f"{place} is a tensor with layout {value.layout} on device {value.device}, "
                "expected a dense tensor with data"
            )
        value = value.detach()
        identity = (
            value.device,
            value.data_ptr(),
            value.dtype,
            value.shape,
            value.stride(),
            value.is_conj(),
            value.is_neg(),
        )
        if value.numel() > 0 and identity in self._nodes:
            return self._nodes[identity]
        name = f"t{len(self.tensors)}"
        node: dict[str, Any] = {TAG: "tensor", "v": name}
        stored = value.resolve_conj().resolve_neg()
        if stored.dim() > 1 and not stored.is_contiguous():
            # a dense permuted layout such as channels_last is stored in memory order, so strides survive
            order = sorted(range(stored.dim()), key=lambda d: (-stored.stride()[d], -stored.shape[d]))
            if stored.permute(order).is_contiguous():
                stored = stored.permute(order)
                node["order"] = order
        stored = stored.cpu().contiguous()
        if stored.dtype is torch.complex128:  # safetensors has no name for it
            stored = torch.view_as_real(stored)
            node["complex128"] = True
        self.tensors[name] = stored
        if value.numel() > 0:
            self._nodes[identity] = node
            self._keep.append(value)
        return node

    def _numpy(self, value: np.generic | np.ndarray, place: str) -> Any:
        if isinstance(value, np.ndarray) and type(value) is not np.ndarray:
            raise TypeError(f"{place} is a {type(value).__name__}, expected a plain numpy.ndarray")
        if value.dtype.hasobject or value.dtype.names is not None:
            raise TypeError(f"{place} is a NumPy array of dtype {value.dtype}, expected numbers, strings or dates")
        name = f"t{len(self.tensors)}"
        raw = np.frombuffer(bytearray(value.tobytes()), dtype=np.uint8) if value.nbytes else np.empty(0, np.uint8)
        self.tensors[name] = torch.from_numpy(raw)
        kind = "ndarray" if isinstance(value, np.ndarray) else "npscalar"
        return {TAG: kind, "v": name, "dtype": value.dtype.str, "shape": list(value.shape)}


class _Unpacker:
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self._made: dict[str, Tensor] = {}

    def unpack(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.unpack(x) for x in node]
        if not isinstance(node, dict):
            return node
        if TAG not in node:
            return {key: self.unpack(x) for key, x in node.items()}
        return self._tagged(node[TAG], node)

    def _tagged(self, kind: str, node: dict[str, Any]) -> Any:
        v = node.get("v")
        if kind == "int":
            return int(v, 16)  # type: ignore[arg-type]
        if kind == "float":
            return float(v)  # type: ignore[arg-type]
        if kind == "tensor":
            return self._tensor(node)
        if kind in ("ndarray", "npscalar"):
            raw = self._named(node["v"]).numpy().tobytes()
            array: Any = np.empty(node["shape"], dtype=np.dtype(node["dtype"]))
            if raw:
                array = np.frombuffer(bytearray(raw), dtype=array.dtype).reshape(array.shape)
            return array if kind == "ndarray" else array[()]
        if kind == "bytes":
            return base64.b64decode(v)  # type: ignore[arg-type]
        if kind == "bytearray":
            return bytearray(base64.b64decode(v))  # type: ignore[arg-type]
        if kind == "dtype":
            return _DTYPES[v]  # type: ignore[index]
        if kind == "device":
            return torch.device(v)  # type: ignore[arg-type]
        items: Any = self.unpack(v)
        if kind == "complex":
            return complex(*items)
        if kind == "range":
            return range(*items)
        if kind == "slice":
            return slice(*items)
        if kind == "tuple":
            return tuple(items)
        if kind == "size":
            return torch.Size(items)
        if kind == "deque":
            return collections.deque(items, node["maxlen"])
        if kind == "set":
            return set(items)
        if kind == "frozenset":
            return frozenset(items)
        if kind == "dict":
            return dict(items)
        if kind == "OrderedDict":
            return collections.OrderedDict(items)
        if kind == "Counter":
            counter: collections.Counter[Any] = collections.Counter()
            dict.update(counter, items)
            return counter
        raise ValueError(
            f"a stored value is of unknown kind {kind!r}; it may come from a newer metafast: update metafast"
        )

    def _named(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise ValueError(
                f"the record refers to tensor {name!r}, which is not among the {len(self._tensors)} stored ones"
            )
        return self._tensors[name]

    def _tensor(self, node: dict[str, Any]) -> Tensor:
        name = node["v"]
        if name not in self._made:
            # a copy, because a loaded tensor may be a view of the checkpoint file, and that file gets deleted
            tensor = self._named(name).clone(memory_format=torch.contiguous_format)
            if node.get("complex128"):
                tensor = torch.view_as_complex(tensor)
            if "order" in node:
                inverse = sorted(range(tensor.dim()), key=node["order"].__getitem__)
                tensor = tensor.permute(inverse)
            self._made[name] = tensor
        return self._made[name]
