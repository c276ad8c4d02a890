"""Stages, their workspace, fingerprints and manifests."""
