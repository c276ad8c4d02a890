"""The page of a map: static files that are the same for every map, and small pictures of the scene."""
