"""Unsupervised keypoints from the cross-attention of a Zero123Plus diffusion model."""
