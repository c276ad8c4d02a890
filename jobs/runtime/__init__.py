"""Ray clusters, logs, progress, metrics and memory."""
