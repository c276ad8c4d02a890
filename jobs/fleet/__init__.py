"""List and rerun many runs, and submit jobs to a cluster."""
