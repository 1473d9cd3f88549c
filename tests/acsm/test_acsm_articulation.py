import pytest
import torch
from acsm_golden import tensors

from acsm import articulation, geometry
from acsm.articulation import articulate, articulate_reference

PARENTS = (-1, 0, 1, 1, 0, 4, 5)
MIRROR = torch.tensor([0, 1, 3, 2, 4, 5, 6])


def random_case(batch=(2, 3), vertices=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parts = len(PARENTS)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    transforms = normal(*batch, parts, 8)
    transforms[..., 4:] = torch.nn.functional.normalize(transforms[..., 4:], dim=-1)
    return {
        "vertices": normal(vertices, 3),
        "membership": normal(vertices, parts).softmax(-1),
        "transforms": transforms,
        "centres": normal(parts, 3),
        "parents": PARENTS,
    }


@pytest.mark.parametrize("function", [articulate, articulate_reference])
def test_matches_the_published_order(function):
    golden = tensors("articulation")
    moved = function(
        golden["verts"], golden["membership"], golden["transforms"], golden["centres"],
        golden["parent"].tolist(), "published",
    )  # fmt: skip
    torch.testing.assert_close(moved, golden["articulated"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("order", ["chain", "published"])
def test_twins_agree_with_gradients(order):
    case = random_case()
    weight = torch.randn(2, 3, 11, 3, dtype=torch.float64)
    results = []
    for function in (articulate, articulate_reference):
        leaves = {k: v.clone().requires_grad_() for k, v in case.items() if k != "parents"}
        moved = function(**leaves, parents=PARENTS, order=order)
        (moved * weight).sum().backward()
        results.append((moved.detach(), *(leaf.grad for leaf in leaves.values())))
        leaves["transforms"].grad[..., 0] = 0
    for fast, slow in zip(*results):
        if fast is None or slow is None:
            continue
        torch.testing.assert_close(fast, slow)


def test_chain_carries_a_foot_with_its_hip():
    # Hip at the origin, knee at (0, 0, -1), foot at (0, 0, -2); the hip turns 90 degrees about x.
    rest = articulation.identity_transforms(1, 3)
    axis = torch.tensor([1.0, 0.0, 0.0])
    quarter = geometry.quat_from_axis_angle(axis, torch.tensor(torch.pi / 2))
    rest[0, 1, 4:] = quarter
    rest[0, 2, 4:] = quarter
    foot = torch.tensor([[0.0, 0.0, -2.0]])
    member = torch.tensor([[0.0, 0.0, 1.0]])
    centres = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 0, -1.0]])
    moved = articulate(foot, member, rest, centres, (-1, 0, 1))
    # The knee lifts the shin to (0, 1, -1), the hip turns that to (0, 1, 1).
    torch.testing.assert_close(moved, torch.tensor([[[0.0, 1.0, 1.0]]]), atol=1e-6, rtol=0)


def test_identity_moves_nothing_and_orders_agree_with_one_ancestor():
    case = random_case()
    rest = articulation.identity_transforms(2, 3, len(PARENTS), dtype=torch.float64)
    still = articulate(**{**case, "transforms": rest})
    torch.testing.assert_close(still, case["vertices"].expand_as(still))
    shallow = {**case, "parents": (-1, 0, 0, 0, 0, 0, 0)}
    torch.testing.assert_close(
        articulate(**shallow), articulate(**shallow, order="published"), atol=1e-12, rtol=0
    )


def test_mirrored_turns_give_the_mirrored_animal():
    case = random_case(batch=(4,))
    sign = torch.tensor([-1.0, 1.0, 1.0]).double()
    centres = case["centres"]
    centres = (centres + sign * centres[MIRROR]) / 2
    case = {**case, "centres": centres, "parents": (-1, 0, 1, 1, 0, 4, 5)}
    mirrored_case = {
        **case,
        "vertices": case["vertices"] * sign,
        "membership": case["membership"][:, MIRROR],
        "transforms": geometry.mirror_part_transforms(case["transforms"], MIRROR),
    }
    torch.testing.assert_close(articulate(**mirrored_case), articulate(**case) * sign)


def test_cycle_is_refused():
    with pytest.raises(ValueError, match="not a tree"):
        articulation.tree_levels((1, 0))
