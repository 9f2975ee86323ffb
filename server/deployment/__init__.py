"""The federation as a service: the folder of a fleet, SuperLink, keys, runs, metrics and logs."""
