"""Titles of the files of a map in catalogues."""

#: Titles of the products, and of the other files by their extension, in catalogues.
TITLES = {
    "class": "Most probable class",
    "second_class": "Second most probable class",
    "confidence": "Probability of the class",
    "probabilities": "Probability of each class",
    "entropy": "Entropy of the class probabilities",
    "mutual_information": "Mutual information of class and model",
    "kl": "KL divergence of the latent code from its prior",
    "gate": "Share of each source in the relation",
    "sources": "Sources with data",
    "quicklook": "Quicklook",
}
OTHER_TITLES = {".qml": "{}: QGIS style", ".xml": "{}: GDAL's auxiliary metadata"}
