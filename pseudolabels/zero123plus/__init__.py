"""Unsupervised keypoints from a diffusion model: Zero123Plus, and a small one of our own.

The models follow Zero123++ (Shi et al., arXiv 2310.15110); the code is this project's. What needs diffusers
is imported when used: pip install "wildshape[diffusion]".
"""
