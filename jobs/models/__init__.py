"""What a model consists of: choice of a recipe, boosted trees, several members, and predictions of samples."""
