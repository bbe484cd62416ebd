from __future__ import annotations

from edgelm.quant.mixed_precision import Budget, Plan, PlannedTensor
from edgelm.quant.plan_table import listing, summary


def planned(name: str, block_format: str, n_bytes: int, error: float) -> PlannedTensor:
    return PlannedTensor(name, (64, 64), block_format, n_bytes, error)


PLAN = Plan(
    (
        planned("token_embd.weight", "Q8_0", 4352, 0.0),
        *(planned(f"blk.{n}.ffn_down.weight", "Q5_0", 2816, 0.01) for n in range(3)),
        *(planned(f"blk.{n}.ffn_down.weight", "Q4_1", 2560, 0.06) for n in range(3, 5)),
    ),
    Budget("bits per weight", 6),
)


def test_summary_counts_the_formats_of_each_kind() -> None:
    header, rows = summary(PLAN)
    assert header[:2] == ("TENSOR", "FORMATS")
    assert rows == [
        ("token_embd", "1 x Q8_0", "8.50", "4,352 bytes", "0", "0.0%"),
        ("ffn_down", "2 x Q4_1, 3 x Q5_0", "5.30", "13,568 bytes", "0.15", "100.0%"),
        ("all", "2 x Q4_1, 3 x Q5_0, 1 x Q8_0", "5.83", "17,920 bytes", "0.15", "100.0%"),
    ]


def test_listing_has_a_row_for_each_tensor() -> None:
    header, rows = listing(PLAN)
    assert len(rows) == 6
    assert dict(zip(header, rows[4], strict=True)) == {
        "TENSOR": "blk.3.ffn_down.weight",
        "SHAPE": "64 x 64",
        "FORMAT": "Q4_1",
        "BITS PER WEIGHT": "5.00",
        "SIZE": "2,560 bytes",
        "PREDICTED ERROR": "0.06",
        "SHARE": "40.0%",
    }


def test_a_plan_without_error_has_no_shares() -> None:
    plan = Plan((planned("a", "Q8_0", 4352, 0.0),), Budget("error", 0))
    assert summary(plan)[1][0][-1] == ""
