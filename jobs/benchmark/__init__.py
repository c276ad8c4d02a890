"""`mibf benchmark`: published data sets by recipe, with the official, a random and a block split."""
