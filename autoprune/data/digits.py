"""Handwritten digits that scikit-learn ships: 1797 images of 8x8 pixels, no download.

They are the test set of the UCI "Optical Recognition of Handwritten Digits" (Alpaydin and
Kaynak 1998).
"""

import torch
from torch.nn import functional

from autoprune.data.splits import Splits, stratified
from autoprune.domain.errors import AutopruneError

LARGEST_VALUE = 16.0


def digits(
    *, side: int = 16, channels: int = 1, val: float = 0.2, test: float = 0.2, seed: int = 0
) -> Splits:
    """The digits as float32[N, channels, side, side] in [-1, 1], resized bilinearly.

    All channels are equal; the splits are stratified. Raises AutopruneError for a side or
    channels below 1 and for shares that cannot be cut.
    """
    for name, value in (("side", side), ("channels", channels)):
        if not isinstance(value, int) or value < 1:
            raise AutopruneError(
                f"data 'digits': {name} is {value!r}; choose an integer of 1 or more"
            )
    # scikit-learn takes a second to import, and a worker, whose data come pickled, needs none
    from sklearn.datasets import load_digits

    bundled = load_digits()
    pixels = torch.from_numpy(bundled.images).float()[:, None] / LARGEST_VALUE * 2.0 - 1.0
    images = functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    images = images.clamp(-1.0, 1.0).repeat(1, channels, 1, 1)
    return stratified(
        images, torch.from_numpy(bundled.target).long(), val=val, test=test, seed=seed
    )
