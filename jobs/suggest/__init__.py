"""`mibf suggest`: where to label next."""
