"""edgebench: speed and quality, measured through the public names of the floors below."""
