"""Unit tests, golden values, fault injection, and complete runs on small scenes."""
