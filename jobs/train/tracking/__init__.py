"""Training metrics for TensorBoard and MLflow."""
