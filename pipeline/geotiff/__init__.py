"""Cloud-optimised GeoTIFFs that are built in parts, on many machines, and assembled from encoded tiles."""
