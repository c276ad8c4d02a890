"""A corpus of odd raster files, written by code, and one oracle that every reader is compared with."""
