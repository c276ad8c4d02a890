"""Stratification: assign blocks to subsets so that every class is split as evenly as possible."""
