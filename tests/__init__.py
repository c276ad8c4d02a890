"""Laws, golden values, fault injection, and whole runs on small scenes."""
