"""Run tasks on threads or on a Dask cluster, and read ahead."""
