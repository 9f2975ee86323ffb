"""What protects a device from the operator and from readers of releases: accounting, noise, secure aggregation."""
