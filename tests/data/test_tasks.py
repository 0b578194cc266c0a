"""TaskBatch: what it refuses, how it is cut, moved and joined."""

import pytest
import torch

from metafast.data import TaskBatch


def make(tasks=3, support=4, query=6, shape=(2,), ways=2, **fields):
    values = {
        "support_x": torch.randn(tasks, support, *shape),
        "support_y": torch.arange(support).remainder(ways).repeat(tasks, 1),
        "query_x": torch.randn(tasks, query, *shape),
        "query_y": torch.arange(query).remainder(ways).repeat(tasks, 1),
    }
    return TaskBatch(**{**values, **fields})


def masked(tasks=3):
    support, query = torch.ones(tasks, 4, dtype=torch.bool), torch.ones(tasks, 6, dtype=torch.bool)
    support[1, 2:], query[2, 1:] = False, False
    return make(tasks, support_mask=support, query_mask=query, classes=torch.tensor([2, 1, 2][:tasks]))


def test_indexing_keeps_tasks_together():
    batch = masked()
    assert (len(batch), batch.tasks, batch[1:].tasks, batch[-1].tasks, batch[::2].tasks) == (3, 3, 2, 1, 2)
    assert torch.equal(batch[-1].support_x[0], batch.support_x[2])
    assert torch.equal(batch[1:].classes, batch.classes[1:])
    assert [one.tasks for one in batch] == [1, 1, 1]
    with pytest.raises(IndexError, match="index must be from -3 to 2, got 3"):
        batch[3]


def test_a_task_comes_without_padding():
    batch = masked()
    assert [tuple(len(part) for part in batch.task(i)) for i in range(3)] == [(4, 4, 6, 6), (2, 2, 6, 6), (4, 4, 1, 1)]
    assert torch.equal(batch.task(1).support_x, batch.support_x[1, :2])
    plain = make()
    assert torch.equal(plain.task(2).query_y, plain.query_y[2])


def test_cat_is_the_inverse_of_slicing():
    batch = masked()
    joined = TaskBatch.cat([batch[:1], batch[1:]])
    for name in ("support_x", "query_y", "support_mask", "query_mask", "classes"):
        assert torch.equal(getattr(joined, name), getattr(batch, name))
    with pytest.raises(ValueError, match="support_mask is None in batch 1 and not in all"):
        TaskBatch.cat([batch, make()])
    with pytest.raises(ValueError, match="batches must not be empty"):
        TaskBatch.cat([])


def test_to_changes_floating_tensors_only():
    batch = masked().to(dtype=torch.float64)
    assert batch.support_x.dtype is torch.float64
    assert batch.support_y.dtype is torch.int64
    assert batch.support_mask.dtype is torch.bool
    tokens = make(support_x=torch.ones(3, 4, 5, dtype=torch.int64), query_x=torch.ones(3, 6, 5, dtype=torch.int64))
    assert tokens.to("cpu", torch.float64).query_x.dtype is torch.int64
    meta = make().to("meta")
    assert meta.query_y.device.type == "meta"


def test_regression_targets():
    batch = make(support_y=torch.zeros(3, 4, 1), query_y=torch.zeros(3, 6, 1))
    assert batch.validate() is batch


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"support_x": [1]}, TypeError, "support_x must be a torch.Tensor, got list"),
        ({"support_x": torch.zeros(4)}, ValueError, r"support_x must be \[tasks, examples, ...\], got shape \(4,\)"),
        ({"support_x": torch.zeros(3, 5, 2)}, ValueError, r"support_y of torch.int64 must be \[3, 5\]"),
        ({"query_x": torch.zeros(2, 6, 2)}, ValueError, r"query_x must be \[3, examples, ...\], got shape \(2, 6, 2\)"),
        ({"query_x": torch.zeros(3, 6, 3)}, ValueError, r"query_x must hold examples like those of support_x, \(2,\)"),
        ({"query_x": torch.zeros(3, 6, 2).double()}, ValueError, "of torch.float32, got .* torch.float64"),
        ({"support_x": torch.zeros(3, 4, 2, dtype=torch.int32)}, TypeError, "support_x must be floating or int64"),
        ({"support_y": torch.zeros(3, 4, dtype=torch.int32)}, TypeError, "support_y must be int64 class numbers"),
        ({"support_y": torch.zeros(3, 4)}, ValueError, r"must be \[3, 4, numbers\], got shape \(3, 4\)"),
        ({"query_y": torch.zeros(3, 6, 1)}, ValueError, "query_y must be like support_y"),
        ({"support_mask": torch.ones(3, 4)}, TypeError, "support_mask must be a bool tensor, got a tensor of"),
        ({"query_mask": torch.ones(3, 4, dtype=torch.bool)}, ValueError, r"must be \[3, 6\] as query_x, got \[3, 4\]"),
        ({"classes": torch.ones(3)}, TypeError, "classes must be an int64 tensor"),
        ({"classes": torch.ones(2, dtype=torch.int64)}, ValueError, r"classes must be \[tasks\] = \[3\]"),
        ({"support_x": torch.zeros(3, 4, 2, device="meta")}, ValueError, r"on one device, got \['cpu', 'meta'\]"),
    ],
)
def test_what_does_not_fit_is_refused(fields, error, text):
    with pytest.raises(error, match=text):
        make(**fields)


def label(part, task, value):
    y = torch.arange(4 if part == "support" else 6).remainder(2).repeat(3, 1)
    y[task, 1] = value
    return {f"{part}_y": y}


@pytest.mark.parametrize(
    ("fields", "ways", "text"),
    [
        (label("support", 2, 5), 5, r"support_y of task 2 must be from 0 to 4 \(5 classes\), got 5"),
        (label("query", 1, -1), 5, r"query_y of task 1 must be from 0 to 4 \(5 classes\), got -1"),
        (label("query", 1, -1), None, "query_y of task 1 must be at least 0, got -1"),
        ({"classes": torch.tensor([2, 1, 2])}, None, r"support_y of task 1 must be from 0 to 0 \(1 classes\), got 1"),
        (
            {"classes": torch.tensor([2, 2, 6])},
            5,
            "classes of task 2 must be from 1 to 5, the width of the logits, got 6",
        ),
        ({"classes": torch.tensor([2, 0, 2])}, None, "classes of task 1 must be at least 1, got 0"),
        (
            {"support_mask": torch.tensor([[True] * 4, [False] * 4, [True] * 4])},
            None,
            "support of task 1 must have at least one example, got none",
        ),
    ],
)
def test_wrong_values_name_the_task(fields, ways, text):
    with pytest.raises(ValueError, match=text):
        make(**fields).validate(ways)


def test_labels_of_padding_do_not_matter():
    batch = masked()
    batch.support_y[1, 3] = 99
    batch.support_y[1, :2] = 0
    batch.query_y[1] = 0
    assert batch.validate(ways=2) is batch
