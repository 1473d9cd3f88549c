"""Sizes of networks and lengths of trainings of `wildshape run`, by the machine they are meant for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Sizes of the networks and lengths of the trainings.

    Attributes:
        backbone: ResNet of the pose network.
        aux_backbone: ResNet of the second pose network, with which CF-CM compares.
        head_channels: Width of the pose networks' heads.
        pose_image_size: Side of their square input, in pixels.
        pose_steps: Optimiser steps of the pose network.
        aux_steps: Those of the second one, which need only be good enough to disagree.
        pose_batch_size: Their items a step.
        encoder_steps: Optimiser steps for which each arm's encoder goes on learning keypoints from the
            arm's animals, before it is left as it is; 0: it stays as the pose network left it.
        acsm_image_size: Side of ACSM's square input, in pixels.
        acsm_steps: Its optimiser steps, the same in every arm.
        acsm_batch_size: Its items a step.
        acsm_lr: Its learning rate.
        acsm_freeze: Whether its ResNet is left as it is.
        selection_num: Pseudo-labels that a criterion keeps.
        token_steps: Optimiser steps of the tokens of a diffusion model, if one is asked for.
    """

    backbone: str
    aux_backbone: str
    head_channels: int
    pose_image_size: int
    pose_steps: int
    aux_steps: int
    pose_batch_size: int
    encoder_steps: int
    acsm_image_size: int
    acsm_steps: int
    acsm_batch_size: int
    acsm_lr: float
    acsm_freeze: bool
    selection_num: int
    token_steps: int


SIZES = {
    "full": Sizes(
        backbone="resnet50",
        aux_backbone="resnet34",
        head_channels=256,
        pose_image_size=256,
        pose_steps=10_000,
        aux_steps=10_000,
        pose_batch_size=32,
        encoder_steps=0,
        acsm_image_size=256,
        acsm_steps=20_000,
        acsm_batch_size=12,
        acsm_lr=5e-4,
        acsm_freeze=False,
        selection_num=1000,
        token_steps=200,
    ),
    "cpu": Sizes(
        backbone="resnet18",
        aux_backbone="resnet18",
        head_channels=64,
        pose_image_size=128,
        pose_steps=700,
        aux_steps=500,
        pose_batch_size=16,
        encoder_steps=250,
        acsm_image_size=128,
        acsm_steps=2000,
        acsm_batch_size=48,
        acsm_lr=7e-4,
        acsm_freeze=True,
        selection_num=500,
        token_steps=200,
    ),
    "miniature": Sizes(
        backbone="resnet18",
        aux_backbone="resnet18",
        head_channels=16,
        pose_image_size=64,
        pose_steps=6,
        aux_steps=6,
        pose_batch_size=8,
        encoder_steps=4,
        acsm_image_size=64,
        acsm_steps=6,
        acsm_batch_size=8,
        acsm_lr=5e-4,
        acsm_freeze=True,
        selection_num=10,
        token_steps=2,
    ),
}


def eval_every(steps: int, times: int) -> int:
    """Steps between evaluations: each writes a checkpoint, which takes longer than a few steps."""
    return max(3, steps // times)
