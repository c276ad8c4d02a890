"""Model bundles: everything that inference needs."""

#: Version of the conversion of reference checkpoints; bump it by one when the imported weights change.
ALGORITHM_VERSION = 1
