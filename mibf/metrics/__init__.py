"""Accuracy and calibration of predictions."""

#: Version of what this package computes. Bump it by one when values change (tests/golden shows it): everything made with
#: another version is then outdated. Changes that keep all values, such as renamed functions or new options, do not count;
#: a changed default of a configuration key does.
ALGORITHM_VERSION = 2
