"""A synthetic world of articulated animals with full ground truth: the embedded default.

The animals have their own tessellation, ball joints and body shapes; nothing is taken from the
template that the 3D stage deforms. See ``docs/images/diorama.jpg`` for what the pictures look like.
"""
