"""Read rasters window by window, on their own grid or resampled to another."""
