"""Files, object stores, leases and retries."""
