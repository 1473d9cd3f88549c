"""Where images come from: metadata, download, detection, and a synthetic world."""
