"""Data sets: original formats, the committed split, and equal images in all workers."""

import recipe_cases

# isort: split
import pickle

import numpy
import pytest
import torch

from discfused.recipes import data, splits
from discfused.recipes.sampler import Batches
from recipe_cases import CLASSES, TEST, TRAIN, Datasets

WHOLE = {"data.validation": None, "train.select": "last"}  # nothing is held out


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Datasets(tmp_path_factory.mktemp("data"))


def load(small, name, seed=0, **changes):
    return data.load(small.options(name, **changes).data, seed)


def test_the_committed_split():
    split = splits.load()
    assert len(split.train) == len(split.test) == 102 and data.BACKGROUND in split.train
    names = {}
    for name in split.train:
        train, test = split.train[name], split.test[name]
        assert len(train) == 30 and 1 <= len(test) <= 50
        assert not set(train) & set(test)
        names[name] = train + test
    # Small classes are there in full, so they can be drawn again.
    full = {name: files for name, files in names.items() if len(split.test[name]) < 50}
    drawn = splits.draw(full)
    assert drawn.train == {name: split.train[name] for name in full}
    assert drawn.test == {name: split.test[name] for name in full}
    assert splits.draw(full, seed=1).train != drawn.train


def test_a_split_is_written_as_it_is_read(tmp_path):
    split = splits.draw({"b": ["2.jpg", "1.jpg"], "a": [f"{i}.jpg" for i in range(99)]})
    splits.save(split, tmp_path / "split.json")
    assert splits.load(tmp_path / "split.json") == split
    assert [len(split.train["a"]), len(split.test["a"]), len(split.test["b"])] == [30, 50, 0]


def test_caltech101_leaves_the_background_out_unless_asked(small):
    parts = load(small, "caltech101")
    assert parts.classes == [*CLASSES[1:]]
    assert parts.train.labels.bincount().tolist() == [TRAIN] * 3
    assert parts.test.labels.bincount().tolist() == [TEST] * 3
    assert load(small, "caltech101", **{"data.background": True}).classes == [*CLASSES]
    for index in range(len(parts.train)):  # the colour tells the class, grey image included
        image = parts.train.decode(index)
        assert image.shape[0] == 3 and min(image.shape[1:]) == 20
        label = int(parts.train.labels[index]) + 1
        assert 60 * label < image.float().mean() < 60 * (label + 1)


def test_cifar100_in_its_own_format(small, monkeypatch):
    recipe_cases.accept_small_files(monkeypatch)
    parts = load(small, "cifar100", **WHOLE)
    assert len(parts.classes) == 100 and parts.classes[7] == "fine 7"
    assert len(parts.train) == 24 and len(parts.test) == 12
    assert parts.train.labels.tolist()[:5] == [0, 3, 2, 1, 0]
    stored = numpy.random.default_rng(0).integers(0, 256, (24, 3072)).astype("uint8")
    stored = torch.from_numpy(stored)  # as recipe_cases.cifar100 draws them
    for index in (0, 23):  # a row holds all of red, then green, then blue, row by row
        assert torch.equal(parts.train.decode(index), stored[index].view(3, 32, 32))


def test_a_cifar100_that_is_not_whole_is_an_error(small):
    with pytest.raises(FileNotFoundError, match=r"corrupted.*expected .*cifar-100-python/train"):
        load(small, "cifar100")


def test_cifar10_and_fashionmnist_in_their_own_formats(small, monkeypatch):
    recipe_cases.accept_small_files(monkeypatch)
    parts = load(small, "cifar10", **WHOLE)
    assert (len(parts.classes), len(parts.train), len(parts.test)) == (10, 40, 8)
    stored = numpy.random.default_rng(0).integers(0, 256, (8, 3072)).astype("uint8")
    assert torch.equal(parts.train.decode(7), torch.from_numpy(stored)[7].view(3, 32, 32))
    parts = load(small, "fashionmnist", **WHOLE)
    assert parts.classes[9] == "Ankle boot" and (len(parts.train), len(parts.test)) == (24, 12)
    stored = numpy.random.default_rng(0).integers(0, 256, (24, 28, 28)).astype("uint8")
    assert torch.equal(parts.train.decode(5), torch.from_numpy(stored)[5].expand(3, 28, 28))
    assert parts.train.labels[:4].tolist() == [0, 3, 6, 9]
    image, label = parts.test[0, 0]  # padded to the recipe's size, not normalised
    assert image.shape == (3, 32, 32) and image.min() == 0 and image.max() <= 1 and label == 0


def test_held_out_images_are_the_same_for_every_seed(small):
    held_out = {"data.validation": 5, "data.samples_per_class": None}
    parts, other = (load(small, "caltech101", seed, **held_out) for seed in (0, 1))
    whole = load(small, "caltech101")
    shown = [{i.numpy().tobytes() for i in images.kept}
             for images in (parts.train, parts.validation, whole.train)]  # fmt: skip
    assert (len(parts.train), len(parts.validation)) == (13, 5) and whole.validation is None
    assert shown[0] | shown[1] == shown[2] and not shown[0] & shown[1]
    assert shown[1] == {i.numpy().tobytes() for i in other.validation.kept}
    assert torch.equal(parts.validation[0, 2][0], parts.validation[9, 2][0])  # not augmented
    fewer = load(small, "caltech101", **held_out, **{"data.train_per_class": 2})
    assert not {i.numpy().tobytes() for i in fewer.train.kept} & shown[1]
    changed = load(small, "caltech101", **held_out, **{"data.validation_seed": 34})
    assert shown[1] != {i.numpy().tobytes() for i in changed.validation.kept}
    with pytest.raises(ValueError, match=r"data.validation is 18, expected fewer than the 18"):
        load(small, "caltech101", **{"data.validation": 18})


def test_digits_are_split_by_the_seed(small):
    parts = load(small, "digits")
    assert len(parts.train) == 20 and len(parts.test) == 1777
    assert parts.train.labels.bincount().tolist() == [2] * 10
    images, again, other = (
        torch.stack([of.train.decode(index) for index in range(20)])
        for of in (parts, load(small, "digits"), load(small, "digits", seed=1))
    )
    assert torch.equal(images, again) and not torch.equal(images, other)
    assert images.shape == (20, 3, 8, 8) and images.dtype == torch.uint8 and images.max() == 255
    tested = {parts.test.decode(index).numpy().tobytes() for index in range(1777)}
    assert not tested & {image.numpy().tobytes() for image in images}
    assert load(small, "digits", **{"data.image_size": 32}).train.decode(0).shape == (3, 32, 32)


def test_numbers_of_two_digits(small):
    parts = load(small, "digit-pairs", **{"data.train_per_class": 3})
    assert parts.classes[7] == "07" and len(parts.classes) == 100
    for images, count in ((parts.train, 3), (parts.test, 20)):
        assert images.labels.bincount().tolist() == [count] * 100
    gray, digits = data._gray_digits()
    known = {image.numpy().tobytes(): index for index, image in enumerate(gray)}
    used = []
    for images in (parts.train, parts.test):
        used.append(set())
        for index in range(0, len(images), 7):
            image = images.decode(index)[:1]
            label = int(images.labels[index])
            for side, digit in ((image[..., :8], label // 10), (image[..., 8:], label % 10)):
                found = known[side.contiguous().numpy().tobytes()]
                assert digits[found] == digit
                used[-1].add(found)
    assert not used[0] & used[1]
    assert parts.test[0, 0][0].shape == (3, 16, 16)


@pytest.mark.parametrize("name", [*data.LAYOUT])
def test_missing_files_are_an_error_that_shows_the_layout(small, tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"data.root is null.*{data.LAYOUT[name]}"):
        load(small, name, **{"data.root": None})
    with pytest.raises(FileNotFoundError, match=f"expected {tmp_path}/{data.LAYOUT[name]}"):
        load(small, name, **{"data.root": str(tmp_path)})


def test_missing_images_are_an_error(small):
    with pytest.raises(FileNotFoundError, match=r"images of the split are missing, .*/Faces/"):
        load(small, "caltech101", **{"data.split": None})


@pytest.mark.parametrize("per_class", [1, 4])
def test_learning_from_fewer_images(small, per_class):
    whole, part = (load(small, "caltech101", **{"data.train_per_class": k})
                   for k in (None, per_class))  # fmt: skip
    assert part.train.labels.bincount().tolist() == [per_class] * 3
    assert len(part.test) == len(whole.test)
    known = [image.numpy().tobytes() for image in whole.train.kept]
    places = [known.index(image.numpy().tobytes()) for image in part.train.kept]
    assert whole.train.labels[places].tolist() == part.train.labels.tolist()
    with pytest.raises(ValueError, match=r"train_per_class is 7, expected at most 6"):
        load(small, "caltech101", **{"data.train_per_class": 7})


@pytest.mark.parametrize("changes", [{"data.cache": False}, {"data.workers": 2}])
def test_images_do_not_depend_on_who_prepares_them(small, changes):
    def epochs(**changes):
        options = small.options("caltech101", **changes)
        parts = data.load(options.data, seed=0)
        batches = Batches(parts.train.labels, 6, 2, stop=6)
        return [*data.loader(parts.train, batches, options.data.workers)]

    torch.manual_seed(1)
    plain = epochs()
    torch.manual_seed(2)
    for (images, labels), (expected, known) in zip(epochs(**changes), plain, strict=True):
        assert torch.equal(images, expected) and torch.equal(labels, known)
    assert images.shape == (6, 3, 16, 16) and images.dtype == torch.float32


@pytest.mark.parametrize("name", recipe_cases.DATASETS)
def test_workers_that_are_not_forked_get_the_same_images(small, monkeypatch, name):
    recipe_cases.accept_small_files(monkeypatch)
    changes = {"data.train_per_class": 1, "data.cache": False, **WHOLE}
    images = load(small, name, **changes).train
    sent = pickle.loads(pickle.dumps(images))
    assert torch.equal(sent[3, 1][0], images[3, 1][0])


def test_any_seed_will_do(small):
    options = small.options("digits").data
    first, second = (data.load(options, seed).train[9, 0][0] for seed in (20261122, 2**40))
    assert first.shape == second.shape


def test_augmentation_changes_with_the_epoch_and_leaves_the_generator_alone(small):
    parts = load(small, "caltech101")
    before = torch.get_rng_state()
    first, again, next_epoch = (parts.train[epoch, 0][0] for epoch in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, next_epoch)
    assert torch.equal(parts.test[0, 0][0], parts.test[1, 0][0])
    assert torch.equal(torch.get_rng_state(), before)
