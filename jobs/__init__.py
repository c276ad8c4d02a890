"""Command line, configuration, Ray Train and Ray Data drivers, reports. The only package that imports Ray."""
