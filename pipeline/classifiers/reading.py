"""Read the classifiers of pixel features of a model bundle."""

from __future__ import annotations

from mibf.bundle.bundle import Bundle
from mibf.bundle.members import TreesMember
from pipeline.classifiers.linear import LinearClassifier
from pipeline.classifiers.trees import Trees

#: Both compute scores of features.
Classifier = Trees | LinearClassifier


def read_classifiers(bundle: Bundle) -> list[Classifier]:
    """Read the bundle's pixelwise members, in their order.

    Raises:
        InputError: a member is damaged, or does not fit the bundle's sources and classes.
    """
    features, classes = 3 * sum(source.bands for source in bundle.spec.sources), bundle.spec.classes
    return [
        Trees.from_text(member.text, features=features, classes=classes)
        if isinstance(member, TreesMember)
        else LinearClassifier.from_weights(member.weights, features=features, classes=classes)
        for member in bundle.pixelwise
    ]
