"""The 2D keypoint network."""
