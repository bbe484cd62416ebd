"""ONNX Runtime as an engine, and the exporters of its graphs."""
