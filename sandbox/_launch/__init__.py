"""The C launcher: its protocol (wire.md), a codec without I/O, and a blocking driver."""
