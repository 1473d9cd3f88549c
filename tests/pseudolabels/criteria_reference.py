"""The criteria once more, one instance and one keypoint at a time, to be read rather than run."""

import math


def reference_kp_conf(confidence):
    return [sum(float(c) for c in row) for row in confidence]


def reference_distance(xy_a, xy_b, box_xyxy):
    values = []
    for points_a, points_b, (x0, y0, x1, y1) in zip(xy_a, xy_b, box_xyxy):
        scale_x, scale_y = 256 / (x1 - x0), 256 / (y1 - y0)
        distances = [
            math.hypot((xa - xb) * scale_x, (ya - yb) * scale_y)
            for (xa, ya), (xb, yb) in zip(points_a, points_b)
        ]
        values.append(sum(distances) / len(distances))
    return values


def reference_cf_mt(xy0, xy_transforms, box_xyxy):
    means = []
    for transforms in xy_transforms:
        means.append(
            [
                [sum(float(points[k][axis]) for points in transforms) / len(transforms) for axis in (0, 1)]
                for k in range(len(transforms[0]))
            ]
        )
    return reference_distance(xy0, means, box_xyxy)
