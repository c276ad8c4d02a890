"""The command `search`: find STAC items of an area and dates, and save them."""
