"""Sizes of Zero123Plus pipelines small enough for tests, and a way to save one."""

TINY = {
    "view_size": 16,
    "vae_channels": (8, 8),
    "unet_channels": (16, 16),
    "heads": (2, 2),
    "middle_layers": 1,
    "width": 24,
    "layers": 1,
    "groups": 4,
}
TWO_LEVELS = TINY | {
    "view_size": 32,
    "vae_channels": (8, 8, 16),
    "unet_channels": (16, 32),
    "heads": (2, 4),
    "tokens": 8,
    "groups": 8,
}
WORDS = ("a", "plain", "horse", "cow", "standing", "head", "legs", "red", "black", "facing", "left", "the")


def save_tiny(folder, words=("horse",), seed=0):
    """Write a tiny pipeline of random weights; returns the folder as text."""
    from pseudolabels.zero123plus.small_model import SmallConfig, build_pipeline, save_half

    save_half(build_pipeline(SmallConfig(**TINY), list(words), seed), folder)
    return str(folder)
