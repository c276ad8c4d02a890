"""Scenes, grids, stores, splits, batches, tiles and maps: everything between files and the network.

May import `mibf`; never imports `jobs` or Ray.
"""
