"""STAC items: their assets as files, and what they state about the values in them."""
