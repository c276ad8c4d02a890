"""The map stage, its status and reruns."""
