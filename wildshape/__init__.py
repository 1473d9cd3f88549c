"""The engine: what flows between the stages of the pseudo-label pipeline."""
