"""MIBF-Net, part by part."""
