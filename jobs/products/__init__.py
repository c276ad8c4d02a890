"""What is made from published maps and trained models: polygons, changes between two maps, models for other runtimes."""
