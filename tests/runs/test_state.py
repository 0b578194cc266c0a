"""The nested state encoder: whatever goes in comes out with the same types, order and bits."""

import collections
import json
import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metafast.runs._state import pack, unpack

FLOAT_DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
INT_DTYPES = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64]
COMPLEX_DTYPES = [torch.complex64, torch.complex128]


def round_trip(value):
    tree, tensors = pack(value)
    text = json.dumps(tree, allow_nan=False)
    assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in tensors.values())
    return unpack(json.loads(text), tensors)


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, float):
        assert struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    elif isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        as_bytes = [x.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
        assert torch.equal(*as_bytes)
    elif isinstance(a, np.ndarray | np.generic):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    elif isinstance(a, dict):
        assert len(a) == len(b)
        for (ka, va), (kb, vb) in zip(a.items(), b.items(), strict=True):
            assert_same(ka, kb)
            assert_same(va, vb)
    elif isinstance(a, list | tuple | collections.deque):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, complex):
        assert_same((a.real, a.imag), (b.real, b.imag))
    else:
        assert a == b


hashables = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
tensors = st.builds(
    lambda seed, shape, dtype: torch.randint(0, 200, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.integers(0, 99),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(FLOAT_DTYPES + INT_DTYPES + COMPLEX_DTYPES + [torch.bool]),
)
leaves = (
    hashables
    | st.floats()
    | st.complex_numbers()
    | tensors
    | st.sampled_from(
        [
            np.float32(0.1),
            np.int64(-3),
            np.arange(3, dtype=">i2"),
            np.array("2020-01-01", dtype="M8[D]"),
            np.zeros((0, 2)),
            torch.float16,
            torch.device("cpu"),
            torch.Size([2, 3]),
            range(1, 9, 2),
            slice(None, 3),
            np.nan,
            np.bool_(True),
        ]
    )
)
states = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(hashables, inner, max_size=4)
        | st.dictionaries(st.sampled_from(["$", "v", "a"]), inner, max_size=3)
        | st.dictionaries(hashables, inner, max_size=3).map(collections.OrderedDict)
        | st.lists(inner, max_size=3).map(lambda items: collections.deque(items, maxlen=5))
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(states)
def test_round_trip_keeps_types_order_and_bits(value):
    assert_same(value, round_trip(value))


@pytest.mark.parametrize(
    "value",
    [-0.0, 5e-324, 0.1, float("inf"), float("-inf"), float("nan"), 2**100_000, -(2**64), "\ud800\0$"],
    ids=lambda value: type(value).__name__,
)
def test_awkward_scalars(value):
    assert_same(value, round_trip(value))


def test_counter_keeps_its_type():
    value = collections.Counter({"a": 2, 5: -1})
    back = round_trip(value)
    assert type(back) is collections.Counter
    assert back == value


@pytest.mark.parametrize("dtype", FLOAT_DTYPES + INT_DTYPES + COMPLEX_DTYPES)
def test_every_bit_pattern_of_a_tensor(dtype):
    raw = torch.randint(0, 256, (64,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    value = raw.view(dtype)
    assert torch.equal(round_trip(value).view(torch.uint8), raw)


def test_strides_of_channels_last_survive():
    value = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    back = round_trip([value, value])
    assert back[0].stride() == value.stride()
    assert torch.equal(back[0], value)
    assert back[0] is back[1]


def test_views_are_copied_tight_and_shared_tensors_stay_shared():
    base = torch.arange(1000.0)
    tree, stored = pack({"view": base[10:13], "strided": base[::100], "tied": [base, base]})
    assert sorted(tensor.numel() for tensor in stored.values()) == [3, 10, 1000]
    back = unpack(tree, stored)
    assert back["tied"][0] is back["tied"][1]
    assert torch.equal(back["strided"], base[::100])


def test_conjugate_and_negative_views():
    value = torch.tensor([1 + 2j, 3 - 4j])
    assert torch.equal(round_trip(value.conj()), value.conj())
    assert torch.equal(round_trip(value.conj().imag), value.conj().imag)


def test_loaded_tensors_have_memory_of_their_own():
    tree, stored = pack(torch.zeros(3))
    back = unpack(tree, stored)
    back += 1
    assert stored["t0"].sum() == 0


@pytest.mark.parametrize(
    "value",
    [
        object(),
        lambda: 0,
        torch.zeros(2).to_sparse(),
        torch.zeros(2, device="meta"),
        np.array([object()]),
        {"a": [print]},
        np.zeros(2, dtype=[("x", "f4")]),
    ],
)
def test_what_only_pickle_could_hold_is_refused_with_its_place(value):
    with pytest.raises(TypeError, match=r"state\['outer'\]\[1\].*expected|pickle"):
        pack({"outer": [0, value]})


def test_a_value_that_contains_itself_is_refused():
    value: list = []
    value.append(value)
    with pytest.raises(ValueError, match="contains itself"):
        pack(value)


def test_unknown_kind_and_missing_tensor():
    with pytest.raises(ValueError, match="unknown kind 'new'"):
        unpack({"$": "new", "v": 1}, {})
    with pytest.raises(ValueError, match="'t7'"):
        unpack({"$": "tensor", "v": "t7"}, {})
