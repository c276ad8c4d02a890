"""The YAML configuration: sections, loading and validation."""
