"""Publish maps: cloud-optimized GeoTIFFs, STAC items and quicklooks."""
