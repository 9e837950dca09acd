"""The samples that excite each feature most, with small pictures of them."""

import math
from typing import NamedTuple

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

KEPT = 6  # samples per feature
PIXELS = 64  # the longer side of a picture


class Example(NamedTuple):
    sample: int  # its number in the data
    label: int
    activation: float
    picture: numpy.ndarray | None  # [h, w, 3] uint8


class MostExciting:
    """The samples with the largest finite phi(x_ij) of each feature j, for any order of the data.

    It keeps KEPT * D activations and at most as many pictures.
    """

    def __init__(self, num_features: int):
        self._activations = torch.full((KEPT, num_features), -1.0)
        self._samples = torch.full((KEPT, num_features), -1)
        self._labels: dict[int, int] = {}
        # One array, whose pages use memory only when they are filled. Thousands of small arrays
        # between large tensors would fragment the heap.
        self._pictures = numpy.zeros((KEPT * num_features, 3 * PIXELS**2), numpy.uint8)
        self._free = [*range(len(self._pictures))]
        self._places: dict[int, tuple[int, tuple[int, ...]]] = {}  # sample: row and shape

    def update(self, x: Tensor, target: Tensor, images: Tensor | None, first: int) -> None:
        """x: [N, D], activated. `first`: the number of the first sample."""
        labels = target if target.dim() == 1 else target.argmax(1)
        # Ignored rows do not count, nor does what is not finite: topk takes NaN for the largest.
        x = torch.where((labels[:, None] < 0) | ~x.isfinite(), -1.0, x)
        # Reduce the candidates on the device.
        largest, rows = x.topk(min(KEPT, len(x)), dim=0)
        activations = torch.cat([self._activations, largest.cpu()])
        samples = torch.cat([self._samples, first + rows.cpu()])
        self._activations, chosen = activations.topk(KEPT, dim=0)
        self._samples = samples.gather(0, chosen)
        wanted = set(self._samples[self._activations > 0].tolist())
        for sample in self._labels.keys() - wanted:
            del self._labels[sample]
            if sample in self._places:
                self._free.append(self._places.pop(sample)[0])
        new = sorted(sample for sample in wanted if sample >= first)
        labels = labels.cpu()
        self._labels.update((sample, int(labels[sample - first])) for sample in new)
        if images is not None and new:
            pictures = _pictures(images[[sample - first for sample in new]])
            for sample, picture in zip(new, pictures, strict=True):
                row = self._free.pop()
                self._pictures[row, : picture.size] = picture.ravel()
                self._places[sample] = row, picture.shape

    @property
    def samples_with_picture(self) -> set[int]:
        return set(self._places)

    def of(self, feature: int) -> list[Example]:
        """The most exciting sample first. Empty if the feature never fired."""
        columns = self._samples[:, feature].tolist(), self._activations[:, feature].tolist()
        return [
            Example(sample, self._labels[sample], activation, self._picture(sample))
            for sample, activation in zip(*columns, strict=True)
            if activation > 0
        ]

    def _picture(self, sample: int) -> numpy.ndarray | None:
        if sample not in self._places:
            return None
        row, shape = self._places[sample]
        return self._pictures[row, : math.prod(shape)].reshape(shape)


def _pictures(images: Tensor) -> numpy.ndarray:
    """[N, h, w, 3] uint8. Each image is stretched to 0 to 255: its normalisation is unknown."""
    x = images.detach().float()
    longest = max(x.shape[2:])
    if longest > PIXELS:
        size = [max(1, round(side * PIXELS / longest)) for side in x.shape[2:]]
        x = F.interpolate(x, size, mode="bilinear", antialias=True)
    low, high = (bound(x, (1, 2, 3), keepdim=True) for bound in (torch.amin, torch.amax))
    x = ((x - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8).cpu()
    return x.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
