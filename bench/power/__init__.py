"""Power meters: one small class each, and the arithmetic from their readings to joules."""
