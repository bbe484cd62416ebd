from __future__ import annotations

from dataclasses import replace

from bench_records import MODEL, load_record, run_record, sustain_record

from edgelm.bench.report.markdown import markdown


def test_every_table_is_whole() -> None:
    for record in (run_record(), load_record(), sustain_record(), run_record(power=False)):
        lines = markdown(record).splitlines()
        tables = [index for index, line in enumerate(lines) if line.startswith("| ---")]
        assert tables
        for index in tables:
            n_cells = lines[index].count("|")
            assert lines[index - 1].count("|") == n_cells
            assert lines[index + 1].count("|") == n_cells


def test_facts_tables_and_notes_are_there() -> None:
    text = markdown(run_record(power=False, state="interrupted", reason="Ctrl-C"))
    for words in ("## smollm2-135m-q4\\_1.gguf on AMD EPYC", "### Speed", "power: not measured", "### Notes", "INTERRUPTED: Ctrl-C", "kvm"):
        assert words in text


def test_names_are_not_taken_for_markdown_or_html() -> None:
    name = "a|b<script>\n# [x](http://y)`.gguf"
    text = markdown(replace(run_record(("cpu",), (2,)), model=replace(MODEL, name=name)))
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "a\\|b" in text
    assert "\n# " not in text
    assert "[x](" not in text.replace("\\[x\\](", "")
