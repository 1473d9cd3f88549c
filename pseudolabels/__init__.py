"""Selection criteria for pseudo-labels, and keypoint sources other than the pose network."""
