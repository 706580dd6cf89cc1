"""Names of classes: what a model's outputs mean, and which of them a folder or a label of a data set is."""

from collections import Counter
from collections.abc import Sequence

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn


def imagenet_classes(model: nn.Module) -> list[str]:
    """The class names of a model with as many outputs as an ImageNet has classes, else nothing."""
    info = _imagenet(int(model.num_classes))  # type: ignore[arg-type]
    return info.label_descriptions() if info else []  # type: ignore[return-value]


def match_classes(names: Sequence[str], classes: Sequence[str], num_classes: int) -> tuple[list[int], list[str]]:
    """The outputs of a model that the classes of a data set are.

    By name, as it is or without regard to case and underscores. The classes of ImageNet are also known by their synset
    (n01440764) and by each of their words that no other class has. By number where there are as many on both sides and
    the names cannot say it: the model has none, or those of the data are numbers, or most names agree and none is
    elsewhere (spellings of ImageNet's differ).

    Args:
        names: of the data set, by label.
        classes: of the model, by output; empty where nobody has named them.

    Returns:
        The output of each label, and the names for which there is none: then the outputs are of the others only.
    """
    if list(names) == list(classes):
        return list(range(num_classes)), []
    named = Counter(classes)
    exact = {name: index for index, name in enumerate(classes) if named[name] == 1}
    other = _other_names(classes, num_classes)
    found = [exact.get(name, other.get(_plain(name))) for name in names]
    unknown = [name for name, index in zip(names, found, strict=True) if index is None]
    if unknown and len(names) == num_classes:
        numbers = all(name.isdecimal() for name in names)
        in_place = all(index in (None, label) for label, index in enumerate(found))
        if not classes or numbers or (in_place and len(unknown) < len(names) / 2):
            return list(range(num_classes)), []
    return [index for index in found if index is not None], unknown


def _other_names(classes: Sequence[str], num_classes: int) -> dict[str, int]:
    """Further names of a model's classes, those that only one class has."""
    owners: dict[str, set[int]] = {}
    for index, name in enumerate(classes):
        owners.setdefault(_plain(name), set()).add(index)
    info = _imagenet(num_classes)
    if info and list(classes) == info.label_descriptions():
        for index, synset in enumerate(info.label_names()):
            for name in (synset, *classes[index].split(',')):
                owners.setdefault(_plain(name), set()).add(index)
    return {name: next(iter(indices)) for name, indices in owners.items() if len(indices) == 1}


def _plain(name: str) -> str:
    return ' '.join(name.replace('_', ' ').casefold().split())


def _imagenet(num_classes: int) -> ImageNetInfo | None:
    subset = infer_imagenet_subset({'num_classes': num_classes})
    return ImageNetInfo(subset) if subset else None
