"""Articulated surface models: camera, articulation and shape from one image."""
