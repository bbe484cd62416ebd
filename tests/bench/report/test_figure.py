from edgelm.bench.report.figure import looks, style


def test_an_engine_keeps_its_colour_and_a_way_to_run_its_line() -> None:
    series = [("cpu", "1 thread"), ("onnx", "1 thread"), ("cpu", "2 threads"), ("onnx", "2 threads")]
    shown = [style(look) for look in looks(series)]
    assert shown[0]["color"] == shown[2]["color"] != shown[1]["color"] == shown[3]["color"]
    assert shown[0]["linestyle"] == shown[1]["linestyle"] != shown[2]["linestyle"] == shown[3]["linestyle"]


def test_no_two_of_many_series_look_alike() -> None:
    series = [(f"engine {n}", "1 thread") for n in range(12)]
    shown = [tuple(style(look).values()) for look in looks(series)]
    assert len(set(shown)) == 12
