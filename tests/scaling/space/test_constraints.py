from dataclasses import replace

import numpy as np
import pytest

from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.filters import names_in
from shapelaw.scaling.space.constraints import DERIVED, FIELDS, Columns, without_width
from support.shapes import SMALL

TABLE = ShapeTable.of([SMALL, SMALL])


def test_a_constraint_may_name_fields_counts_ratios_and_bytes():
    columns = Columns(TABLE, 4, 1)
    assert [*columns] == [*FIELDS, *DERIVED]
    assert len(columns) == len([*columns])
    values = {name: columns[name] for name in columns}
    assert {len(value) for value in values.values()} == {2}
    assert values["kv_bytes"][0] == 2 * 2 * 48 * 3  # keys and values of one byte each
    assert values["weight_bytes"][0] == 4 * SMALL.n_total
    for name in ("n_total", "n_active", "n_non_embedding", "gqa", "mlp_to_attention"):
        assert values[name][1] == getattr(SMALL, name)
    assert "loss" not in columns
    with pytest.raises(KeyError):
        columns["loss"]


def test_only_the_columns_in_a_constraint_are_computed(monkeypatch):
    monkeypatch.setitem(DERIVED, "n_total", lambda *_: 1 / 0)
    columns = Columns(TABLE, 2, 2)
    assert columns.where("gqa == 2 and kv_bytes > 1").tolist() == [True, True]
    with pytest.raises((ZeroDivisionError, InputError)):
        columns.where("n_total > 1")


@pytest.mark.parametrize("name", [*FIELDS, *DERIVED])
def test_a_constraint_is_without_width_exactly_if_its_column_ignores_the_width(name):
    wide = ShapeTable.of([SMALL, replace(SMALL, intermediate_size=320)])
    values = Columns(wide, 2, 2)[name]
    assert without_width(f"{name} > 0") == bool(np.all(values == values[0]))


def test_the_names_in_an_expression_are_found_without_applying_it():
    assert names_in("a % 2 == 0 and not (b < c + 1 or 'd' == e)") == {"a", "b", "c", "e"}
    assert names_in("1 < 2") == set()
    with pytest.raises(InputError, match="must be a condition on columns"):
        names_in("a <")
