"""Write a first configuration from the files of a scene."""
