"""Training batches: epoch plan, shuffle buffer, sampler."""
