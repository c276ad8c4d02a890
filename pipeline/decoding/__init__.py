"""From stored values to quantities: encodings of embeddings and radar, and expressions for derived bands."""
