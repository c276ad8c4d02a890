"""Read-only commands: plan, verify, bundle show."""
