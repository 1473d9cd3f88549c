"""SLEAP: import of `.slp` projects through sleap-io, an extra (`pip install "wildshape[sleap]"`).

Only instances that people labelled are taken, not predictions. Images of a sequence are used where they
lie; frames of a video, and those embedded in a `.pkg.slp`, are written as PNG to the labelled images.
Positions count from the centre of the first pixel, as sleap-io gives them. A box spans an animal's
labelled keypoints, a tenth wider.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from wildshape.cli import say
from wildshape.errors import UserError
from wildshape.files import atomic_path, file_hash
from wildshape.formats.labelled import LabelRecord, keypoints_box, map_keypoints, map_names, one_file
from wildshape.stage import progress
from wildshape.workspace import Workspace

SOURCE = "sleap"


def find_file(root: Path) -> Path:
    """The project of a folder, or the file itself.

    Raises:
        UserError: there is not exactly one.
    """
    return one_file(root, "SLEAP project *.slp", "*.slp")


def image_folder(path: Path) -> Path:
    """Where pictures lie whose recorded place is gone: the project's own folder."""
    return path.parent


def read_records(
    path: Path, workspace: Workspace, source_category: str | None = None
) -> tuple[list[LabelRecord], Counter[str]]:
    """All labelled animals, and how many were left out by reason; the format names no category.

    Raises:
        UserError: sleap-io is missing, nothing is labelled, keypoints do not fit, or it is no project.
    """
    labels = _load(path)
    mappings: dict[tuple[str, ...], np.ndarray] = {}
    for skeleton in labels.skeletons:
        names = tuple(str(name) for name in skeleton.node_names)
        mappings[names] = map_names(workspace.category.skeleton, names, str(path))
    frames = [frame for frame in labels.labeled_frames if frame.user_instances]
    if not frames:
        predicted = sum(len(frame.predicted_instances) for frame in labels.labeled_frames)
        raise UserError(
            f"{path}: expected instances that people labelled; found {predicted} predicted ones"
        )
    pictures = _Pictures(path, workspace)
    records: list[LabelRecord] = []
    dropped: Counter[str] = Counter()
    numbers = {id(video): number for number, video in enumerate(labels.videos)}
    for frame in progress(frames, "reading SLEAP frames", unit="frame"):
        place = f"video{numbers.get(id(frame.video), 0)}/{int(frame.frame_idx)}"
        name = pictures.name(frame.video, int(frame.frame_idx), place)
        if name is None:
            dropped["frame of a video that is not there"] += len(frame.user_instances)
            continue
        for number, instance in enumerate(frame.user_instances):
            mapping = mappings[tuple(str(node) for node in instance.skeleton.node_names)]
            points = instance.points
            xy = np.asarray(points["xy"], dtype=np.float64)
            there = np.isfinite(xy).all(-1)
            if there.sum() < 2:
                dropped["fewer than two labelled keypoints"] += 1
                continue
            visible = np.where(there, np.where(points["visible"], 2, 1), 0)
            mapped, seen = map_keypoints(xy, visible, mapping)
            box = keypoints_box(xy[there])
            records.append(
                LabelRecord(name, f"{place}/{number}", box, mapped, seen, box_from_keypoints=True)
            )
    if pictures.extracted:
        folder = workspace.relative(workspace.labelled_images_dir)
        say(f"import sleap: {pictures.extracted} frames of videos written to {folder}")
    return records, dropped


def _load(path: Path) -> Any:
    try:
        import sleap_io
    except ImportError:
        raise UserError(f'{path} needs sleap-io; run: pip install "wildshape[sleap]"') from None
    try:
        return sleap_io.load_slp(str(path))
    except (OSError, KeyError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: expected a SLEAP project; found {reason}") from None


class _Pictures:
    """Where the picture of a frame is: its own file, or one written here."""

    def __init__(self, path: Path, workspace: Workspace) -> None:
        self.path, self.workspace = path, workspace
        self.extracted = 0
        self._key = file_hash(path)[:8]

    def name(self, video: Any, frame: int, place: str) -> str | None:
        """Path of the file, as far as it is known; None if there is no frame to read."""
        if isinstance(video.filename, list):
            return self._file(Path(video.filename[frame]))
        target = self.workspace.labelled_images_dir / f"sleap_{self._key}_{place.replace('/', '_')}.png"
        if not target.exists():
            image = self._read(video, frame)
            if image is None:
                return None
            self._write(image, target)
            self.extracted += 1
        return str(target.resolve())

    def _file(self, recorded: Path) -> str:
        """The recorded place, else the longest end of it that is found beside the project."""
        if recorded.is_absolute() and recorded.is_file():
            return str(recorded)
        for start in range(len(recorded.parts)):
            rest = Path(*recorded.parts[start:])
            if not rest.is_absolute() and (self.path.parent / rest).is_file():
                return rest.as_posix()
        return recorded.name

    def _read(self, video: Any, frame: int) -> np.ndarray | None:
        if not video.exists():
            beside = self.path.parent / Path(str(video.filename).replace("\\", "/")).name
            if not beside.is_file():
                return None
            video.replace_filename(str(beside))
        try:
            return np.asarray(video[frame])
        except (OSError, ValueError, IndexError, KeyError, RuntimeError) as error:
            say(f"import sleap: frame {frame} of {video.filename} cannot be read: {error}")
            return None

    def _write(self, image: np.ndarray, target: Path) -> None:
        from PIL import Image

        if image.ndim == 3 and image.shape[2] == 1:
            image = image[..., 0]
        with atomic_path(target) as temporary:
            Image.fromarray(np.ascontiguousarray(image)).save(temporary)
