"""Settings of the small world that the tests of this folder share."""

SMALL = {
    "num_train": 12, "num_val": 6, "num_test": 8, "num_web": 40, "identities": 2, "image_size": 128,
    "duplicate_share": 0.15, "leak_share": 0.05, "rate_limited_share": 0.1, "not_found_share": 0.1,
    "truncated_share": 0.1, "not_image_share": 0.05, "seed": 4,
}  # fmt: skip
