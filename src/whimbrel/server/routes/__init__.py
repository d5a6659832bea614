"""The routes, one file for each word of the path."""
