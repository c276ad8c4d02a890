"""What a model consists of: choice of a recipe, classifiers of pixel features, several members."""
