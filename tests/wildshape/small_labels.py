"""Pictures to label, and imports of labels."""

import json

import numpy as np
from PIL import Image

from wildshape.formats import import_command


def save_picture(path, seed, size=(120, 100)):
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize(size)
    picture.save(path, quality=95)


def bring_in(workspace, form, root, **changes):
    config = import_command.Config(format=form, root=root, category=workspace.category.name, **changes)
    return import_command.run(config, workspace)


def edit(path, change):
    """Change what a JSON file holds."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
