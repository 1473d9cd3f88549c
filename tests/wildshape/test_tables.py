import errno
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildshape.annotations import annotate_table
from wildshape.errors import UserError
from wildshape.tables import (
    SCHEMAS,
    Table,
    TableError,
    concat,
    content_hash,
    make_image_id,
    make_instance_id,
    make_record_id,
    read_facts,
    read_table,
    table_hash,
    write_table,
)

IMAGE = {"record_id": "r1", "source": "web", "status": "ok"}


def sample(kind, rows=3, keypoints=2, parts=2, seed=0):
    """A table of a kind with random values, and nulls wherever they may be."""
    rng = np.random.default_rng(seed)
    sizes = {"K": keypoints, "P": parts}
    columns = {}
    for name, column in SCHEMAS[kind].items():
        shape = (rows, *(sizes[s] if isinstance(s, str) else s for s in column.shape))
        if column.dtype == "str":
            columns[name] = np.array([f"{name} {i} ü\n," for i in range(rows)], dtype=object)
            if column.nullable:
                columns[name][1::2] = None
        elif column.dtype == "int64":
            columns[name] = rng.integers(0, 3, shape)
            if column.nullable:
                columns[name][1::2] = -1
        else:
            columns[name] = rng.normal(size=shape)
            if column.nullable:
                columns[name][1::2] = np.nan
    if kind == "labels":
        columns["visible"][np.isnan(columns["xy"]).any(-1)] = 0
    return Table(kind, columns, {"skeleton": "s"})


def keypoints(**changes):
    columns = {
        "instance_id": ["a", "b"],
        "transform": ["none", "none"],
        "xy": np.zeros((2, 3, 2)),
        "confidence": np.ones((2, 3)),
    }
    return Table("keypoints", {**columns, **changes})


def assert_same(a, b):
    assert a.kind == b.kind and dict(a.meta) == dict(b.meta)
    for name in SCHEMAS[a.kind]:
        assert a[name].dtype == b[name].dtype, name
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("rows", [0, 1, 4])
@pytest.mark.parametrize("kind", list(SCHEMAS))
def test_round_trip_with_nulls(tmp_path, kind, rows):
    table = sample(kind, rows)
    write_table(table, tmp_path / "t.parquet", {"stage": "s", "config": {"a": 1}})
    found = read_table(tmp_path / "t.parquet", kind)
    assert_same(found, table)
    assert table_hash(tmp_path / "t.parquet") == content_hash(table) == content_hash(found)
    assert read_facts(tmp_path / "t.parquet")["provenance"] == {"stage": "s", "config": {"a": 1}}


@pytest.mark.parametrize("rows", [0, 2])
def test_round_trip_without_keypoints(tmp_path, rows):
    table = sample("keypoints", rows, keypoints=0)
    write_table(table, tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", "keypoints")["xy"].shape == (rows, 0, 2)


def test_an_empty_table_remembers_how_many_keypoints(tmp_path):
    write_table(Table.empty("keypoints", num_keypoints=16, skeleton="x"), tmp_path / "t.parquet")
    found = read_table(tmp_path / "t.parquet", "keypoints")
    assert found["xy"].shape == (0, 16, 2) and found.meta == {"skeleton": "x"}


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=5),
    st.lists(st.text(min_size=1, max_size=5), min_size=5, max_size=5, unique=True),
)
def test_any_positions_and_ids_survive(tmp_path_factory, xy, ids):
    path = tmp_path_factory.mktemp("tables") / "t.parquet"
    positions = np.array(xy)[:, None]
    ids = [i.encode("utf-8", "replace").decode() for i in ids[: len(xy)]]
    table = Table(
        "keypoints",
        {
            "instance_id": ids,
            "transform": ["none"] * len(xy),
            "xy": positions,
            "confidence": positions[..., 0],
        },
    )
    write_table(table, path)
    assert_same(read_table(path, "keypoints"), table)


def test_the_file_is_plain_parquet_that_others_read(tmp_path):
    write_table(sample("labels"), tmp_path / "t.parquet")
    frame = pq.read_table(tmp_path / "t.parquet").to_pydict()
    assert frame["image_id"][1] is None
    assert len(frame["xy"][0]) == 4  # [K, 2], row by row
    assert frame["camera"][1] == [None] * 7


def test_wrong_kind_missing_file_and_foreign_files_are_named(tmp_path):
    write_table(sample("images"), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"expected a table of kind labels in .*t\.parquet; found images"):
        read_table(tmp_path / "t.parquet", "labels")
    with pytest.raises(UserError, match=r"expected a table at .*none\.parquet; found none"):
        read_table(tmp_path / "none.parquet", "labels")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"expected a wildshape table in .*bad\.parquet"):
        read_table(tmp_path / "bad.parquet", "labels")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    with pytest.raises(UserError, match=r"expected a wildshape table in .*foreign\.parquet"):
        read_table(tmp_path / "foreign.parquet", "labels")
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"expected .*cut\.parquet"):
        read_table(tmp_path / "cut.parquet", "images")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"xy": np.full((2, 3, 2), np.nan)}, "expected values in xy, found NaN or infinity in row 0"),
        ({"confidence": [[1, 1, 1], [1, np.inf, 1]]}, "expected values in confidence.* row 1"),
        ({"instance_id": ["a", None]}, "expected values in instance_id, found null in row 1"),
        ({"confidence": np.ones((2, 4))}, r"expected 3 \(K\) in confidence, found 4"),
        ({"xy": np.ones((2, 3, 3))}, r"expected 2 \(2\) in xy, found 3"),
        ({"xy": np.ones((2, 3))}, r"expected xy of shape \['N', 'K', 2\], found \[2, 3\]"),
        ({"transform": ["none"]}, "expected 2 rows in transform, found 1"),
        ({"colour": ["red"] * 2}, r"unknown columns \['colour'\]"),
    ],
)
def test_columns_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(TableError, match=message):
        keypoints(**changes)


def test_labelled_keypoints_need_positions():
    table = sample("labels", 2)
    visible = np.array([[0, 0], [0, 2]])
    with pytest.raises(TableError, match="expected positions of labelled keypoints.* row 1, keypoint 1"):
        table.with_columns(visible=visible)


def test_whole_numbers_cannot_be_nan():
    with pytest.raises(TableError, match="expected whole numbers in width"):
        sample("images").with_columns(width=[1.0, np.nan, 2.0])


@pytest.mark.parametrize(("kind", "key"), [("images", "record_id"), ("instances", "instance_id")])
def test_duplicate_ids_are_refused(kind, key):
    table = sample(kind)
    with pytest.raises(TableError, match=f"expected distinct {key}, found x twice"):
        table.with_columns(**{key: ["x", "y", "x"]})


def test_one_instance_may_have_keypoints_under_several_transforms():
    table = keypoints(instance_id=["a", "a"], transform=["none", "rot_10"])
    assert len(table) == 2


def test_unknown_kind_is_the_programmers_mistake():
    with pytest.raises(ValueError, match="expected a kind of table among"):
        Table("joints", {})


def test_content_hash_depends_on_content_alone(tmp_path):
    table = sample("labels")
    write_table(table, tmp_path / "a.parquet", {"stage": "one"})
    write_table(table, tmp_path / "b.parquet", {"stage": "two"})
    assert table_hash(tmp_path / "a.parquet") == table_hash(tmp_path / "b.parquet")
    changed = [
        table.with_columns(score=[0.0, 0.0, 1.0]),
        table.with_meta(skeleton="t"),
        table.take([1, 0, 2]),
        table.take([0, 1]),
    ]
    assert len({content_hash(t) for t in (table, *changed)}) == 5


def test_content_hash_is_the_same_in_every_run():
    columns = {"instance_id": ["a"], "criterion": ["kp_conf"], "value": [np.nan], "rank": [0]}
    assert content_hash(Table("selections", columns)) == "166f61b232757f02b1805768"


def test_content_hash_knows_one_nan():
    negative = np.array([np.nan, np.nan, np.nan])
    negative = np.copysign(negative, -1)
    table = sample("instances")
    assert content_hash(table.with_columns(score=negative)) == content_hash(
        table.with_columns(score=[np.nan] * 3)
    )


def test_a_table_is_read_only_and_copies_what_it_is_given():
    xy = np.zeros((2, 3, 2))
    table = keypoints(xy=xy)
    xy += 1
    assert table["xy"].sum() == 0
    with pytest.raises(ValueError, match="read-only"):
        table["xy"][0] = 1
    with pytest.raises(TypeError):
        table.columns["xy"] = xy


def test_take_rows_lookup_concat_pandas():
    table = sample("instances", 4)
    ids = list(table["instance_id"])
    assert list(table.take([2, 0])["instance_id"]) == [ids[2], ids[0]]
    assert list(table.take(np.array([True, False, False, True]))["instance_id"]) == [ids[0], ids[3]]
    assert len(table.take([])) == 0 and len(table.take(slice(1, 3))) == 2
    assert table.lookup() == {name: i for i, name in enumerate(ids)}
    assert table.lookup("image_id") == {table["image_id"][0]: 0, table["image_id"][2]: 2}
    assert [row["instance_id"] for row in table.rows()] == ids
    assert_same(concat([table.take([0, 1]), table.take([]), table.take([2, 3])]), table)
    assert table.to_pandas().shape == (4, len(SCHEMAS["instances"]))
    with pytest.raises(ValueError, match="expected tables of one kind"):
        concat([table, sample("images")])


def test_from_rows_fills_nulls_wherever_they_are():
    rows = [IMAGE, {**IMAGE, "record_id": "r2", "width": 5, "path": "a/b.jpg"}]
    table = Table.from_rows("images", rows)
    assert table["width"].tolist() == [-1, 5] and table["height"].tolist() == [-1, -1]
    assert table["path"].tolist() == [None, "a/b.jpg"]
    assert Table.from_rows("images", [{**IMAGE, "width": None}])["width"].tolist() == [-1]
    label = {"instance_id": "a", "category": "cow", "box_xyxy": [0, 0, 1, 1], "detector": "d", "flags": ""}
    label |= {"split": "val", "skeleton": "s", "xy": np.zeros((2, 2)), "visible": [0, 0]}
    labels = Table.from_rows("labels", [{**label, "camera": np.ones(7)}, {**label, "instance_id": "b"}])
    assert labels["camera"][0].tolist() == [1] * 7 and np.isnan(labels["camera"][1]).all()
    assert Table.from_rows("keypoints", [], num_keypoints=5)["xy"].shape == (0, 5, 2)
    with pytest.raises(KeyError, match="source"):
        Table.from_rows("images", [{"record_id": "r", "status": "ok"}])


def test_ids_come_from_content():
    assert make_image_id(b"bytes") == "i277089d91c0bdf4f"
    assert (
        make_record_id("flickr", "17") == make_record_id("flickr", "17") != make_record_id("flickr1", "7")
    )
    box = np.array([1.0, 2.0, 3.0, 4.0])
    assert make_instance_id("i", "d", box) == make_instance_id("i", "d", box + 0.01)
    assert make_instance_id("i", "d", box) != make_instance_id("i", "d", box + 0.2)
    assert make_instance_id("i", "d", -0.0 * box) == make_instance_id("i", "d", 0 * box)
    assert {make_record_id("a", "b")[0], make_instance_id("i", "d", box)[0]} == {"r", "a"}


def test_a_full_disk_leaves_the_old_table(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    write_table(sample("images", 2), path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_table(sample("images", 4), path)
    monkeypatch.undo()
    assert len(read_table(path, "images")) == 2
    assert os.listdir(tmp_path) == ["t.parquet"]


def annotated(**changes):
    row = {
        "instance_id": "a", "image_id": "i", "category": "cow", "source_id": None, "detector": "d",
        "box_xyxy": np.array([0.0, 0, 4, 4]), "score": 0.5, "flags": "",
    }  # fmt: skip
    return Table.from_rows("instances", [{**row, **changes}, {**row, "instance_id": "b"}])


def test_annotations_are_no_part_of_the_content(tmp_path):
    plain, masked = annotated(), annotated(mask_rle="x", mask_quality=0.5)
    assert content_hash(plain) == content_hash(masked)
    assert content_hash(plain) != content_hash(annotated(score=0.6))
    assert {n for s in SCHEMAS.values() for n, c in s.items() if c.annotation} == {
        "mask_rle",
        "mask_quality",
    }
    assert all(c.nullable for schema in SCHEMAS.values() for c in schema.values() if c.annotation)


def test_annotating_a_file_keeps_what_it_says_of_itself(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(annotated(), path, {"stage": "boxes"})
    before = read_facts(path)
    annotate_table(path, "instances", mask_rle=["x", None], mask_quality=[0.25, np.nan])
    found = read_table(path, "instances")
    assert found["mask_rle"].tolist() == ["x", None] and found["mask_quality"][0] == 0.25
    assert np.isnan(found["mask_quality"][1])
    assert read_facts(path) == before
    with pytest.raises(ValueError, match="expected annotation columns of instances, found .'score'."):
        annotate_table(path, "instances", score=[1.0, 1.0])


def test_a_file_from_before_a_column_was_there(tmp_path):
    """As an earlier version wrote it: without the column, hashed with the masks that it had."""
    path = tmp_path / "t.parquet"
    write_table(annotated(mask_rle="x"), path)
    arrow = pq.read_table(path)
    facts = json.loads(arrow.schema.metadata[b"wildshape"])
    del facts["shapes"]["mask_quality"]
    facts["content"] = "of the earlier version"
    old = arrow.drop_columns("mask_quality").replace_schema_metadata({"wildshape": json.dumps(facts)})
    pq.write_table(old, path)
    found = read_table(path, "instances")
    assert found["mask_rle"].tolist() == ["x", None] and np.isnan(found["mask_quality"]).all()
    assert table_hash(path) == "of the earlier version"
    annotate_table(path, "instances", mask_quality=[0.5, 0.5])  # nothing goes stale by that either
    assert table_hash(path) == "of the earlier version"
    assert read_table(path, "instances")["mask_quality"].tolist() == [0.5, 0.5]
    pq.write_table(arrow.drop_columns("detector"), path)
    with pytest.raises(UserError, match="expected columns of kind instances"):
        read_table(path, "instances")
