"""What a backend's members stage must say of hard labels."""

import torch
from torch import Tensor

from cases import features, labels
from discfused.backends.contract import Backend, Labels, Members


def hard(y, C, weight=None, sample_weight=None) -> Labels:
    return Labels(y, weight, sample_weight, C, -100)


def check_members(backend: Backend, N: int, C: int) -> tuple[Members, Tensor, Tensor]:
    """The stage's answer, checked, with the features and the row weights that it is about."""
    y = labels(N, C, "some ignored")
    weight, sample_weight = torch.rand(C), torch.rand(N)
    sample_weight[4] = 0
    weight[y[5]] = 0
    x = features(N, 3, torch.float32)
    got = backend.members(hard(y, C, weight, sample_weight), min(N, C), x, "relu")
    n = torch.where(y == -100, 0, weight[y.clamp(min=0)] * sample_weight)
    torch.testing.assert_close(got.row_weight, n)
    torch.testing.assert_close(got.total, n.sum())
    counts = n != 0
    assert (got.slot[~counts] == -1).all()
    assert torch.equal(got.slot_class[got.slot[counts].long()], y[counts])
    used = got.slot_class[got.slot[counts].long().unique()]
    assert torch.equal(used, y[counts].unique())  # in the order of classes
    share = torch.zeros(C).index_add_(0, y[counts], n[counts]) / n.sum()
    there = got.slot_class >= 0
    torch.testing.assert_close(got.share[there], share[got.slot_class[there]])
    assert (got.share[~there] == 0).all()
    return got, x, n
