"""Command line, configuration, Ray Train and Ray Data drivers, reports: the only package that imports Ray."""
