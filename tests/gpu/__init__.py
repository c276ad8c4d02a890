"""Checks on a GPU: correctness against the CPU, throughput, and failures of the device. `make gpu` runs them."""
