"""One file a format: what comes in, and what goes out."""
