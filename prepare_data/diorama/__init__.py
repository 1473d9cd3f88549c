"""A synthetic world of articulated animals with full ground truth."""
