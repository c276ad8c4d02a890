"""`mibf view`: show published maps in a browser, from a local server."""
