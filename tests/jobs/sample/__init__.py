"""Tests of the sample and of its catalogue."""
