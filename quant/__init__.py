"""Ground floor: model files, number formats, packers."""
