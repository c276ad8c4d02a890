"""How requests to object stores are signed, and how long they wait for an answer."""
