"""Tests of `mibf init`."""
