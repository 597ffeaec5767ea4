"""Photographs and handwritten digits that ship inside scikit-image and scikit-learn, divided into training and test."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

# Divided by photograph, so that no pixel of a test clip was ever seen in training.
PHOTOGRAPHS = {
    "train": (
        "astronaut", "coffee", "rocket", "stereo_motorcycle", "hubble_deep_field", "immunohistochemistry", "camera",
        "gravel", "brick", "china.jpg",
    ),
    "test": ("chelsea", "flower.jpg", "retina", "grass", "moon", "coins"),
}  # fmt: skip
SPLITS = tuple(PHOTOGRAPHS)
SHORT_SIDE = 128  # pixels that the shorter side of a photograph is scaled to
_TEST_DIGITS = (
    450  # of 1,797; the last ones, which other people wrote (the set is in the order of its writers)
)


@functools.cache
def photographs(split: str) -> tuple[Tensor, ...]:
    """Each (3, H, W), float32 in [0, 1], the shorter of H and W being ``SHORT_SIDE``.

    Raises:
        ImportError: scikit-image or scikit-learn is missing.
    """
    from skimage.transform import resize

    pictures = []
    for name in PHOTOGRAPHS[split]:
        picture = _read(name)
        picture = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
        scale = SHORT_SIDE / min(picture.shape[:2])
        shape = tuple(round(side * scale) for side in picture.shape[:2])
        small = resize(picture, shape, anti_aliasing=True)  # uint8 -> [0, 1]
        pictures.append(torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1), dtype=np.float32)))
    return tuple(pictures)


@functools.cache
def digits(split: str) -> tuple[tuple[Tensor, ...], ...]:
    """Handwritten digits, those of 0 first: each (8, 8), float32 in [0, 1], how much ink there is.

    Raises:
        ImportError: scikit-learn is missing.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    kept = slice(-_TEST_DIGITS) if split == "train" else slice(-_TEST_DIGITS, None)
    images, labels = data.images[kept] / 16, data.target[kept]
    return tuple(
        tuple(torch.from_numpy(image).float() for image in images[labels == label]) for label in range(10)
    )


def _read(name: str) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3)."""
    if "." in name:
        from sklearn.datasets import load_sample_image

        return load_sample_image(name)
    import skimage.data

    picture = getattr(skimage.data, name)()
    return picture[0] if isinstance(picture, tuple) else picture  # a stereo pair comes with its disparity
