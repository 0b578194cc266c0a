"""Columns as tensors."""

import numpy as np
import pytest
import torch

datasets = pytest.importorskip("datasets", reason="to_tensors takes what the hf extra loads")
PIL = pytest.importorskip("PIL.Image", reason="images need pillow")

from metafast.data import labels_of, to_tensors  # noqa: E402


def make(shapes, labels, image="image", label="label"):
    draws = np.random.default_rng(0)
    arrays = [draws.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    return arrays, datasets.Dataset.from_dict({image: [PIL.fromarray(a) for a in arrays], label: labels})


@pytest.mark.parametrize(("shape", "channels"), [((5, 4), 1), ((5, 4, 3), 3)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
def test_pixels_are_exact(shape, channels, dtype):
    arrays, data = make([shape] * 3, [2, 0, 1])
    images, labels = to_tensors(data, dtype=dtype)
    assert images.shape == (3, channels, 5, 4)
    assert images.is_contiguous()
    assert images.dtype == dtype
    assert labels.tolist() == [2, 0, 1]
    want = torch.from_numpy(np.stack(arrays)).reshape(3, 5, 4, channels).permute(0, 3, 1, 2)
    assert torch.equal(images, want if dtype is torch.uint8 else (want / 255).to(dtype))


def test_usual_and_named_columns():
    _, data = make([(2, 2)], [7], image="img", label="fine_label")
    assert to_tensors(data)[1].tolist() == [7]
    _, data = make([(2, 2)], [7], image="picture", label="kind")
    assert to_tensors(data, image="picture", label="kind")[0].shape == (1, 1, 2, 2)
    with pytest.raises(ValueError, match=r"none of the usual columns .* name one of \['picture', 'kind'\]"):
        to_tensors(data)
    with pytest.raises(ValueError, match=r"image must be one of the columns .*, got 'x'"):
        to_tensors(data, image="x")


def test_images_of_several_sizes_and_wrong_types():
    _, data = make([(2, 2), (3, 2)], [0, 1])
    with pytest.raises(ValueError, match=r"images of one size, got 2 such"):
        to_tensors(data)
    with pytest.raises(TypeError, match="dataset must be one split"):
        to_tensors({"image": []})
    _, data = make([(2, 2)], [0])
    with pytest.raises(TypeError, match=r"dtype must be torch.uint8 or a floating type"):
        to_tensors(data, dtype=torch.int64)
    with pytest.raises(ValueError, match="8-bit images"):
        to_tensors(datasets.Dataset.from_dict({"image": [[[1.5]]], "label": [0]}))
    with pytest.raises(ValueError, match="must not be empty"):
        to_tensors(data.select([]))


def test_labels_must_be_class_numbers():
    assert labels_of(datasets.Dataset.from_dict({"label": [3, 1]})).tolist() == [3, 1]
    for wrong in (["a"], [0.5], [-1]):
        with pytest.raises(ValueError, match="class numbers"):
            labels_of(datasets.Dataset.from_dict({"label": wrong}))
