"""The trained graph parts at work: NumPy and the native core only."""
