"""Changes between two published class maps on the same grid: counts of pixels and areas by pair of classes."""
