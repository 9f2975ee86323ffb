"""The operator: gates and aggregates updates, keeps releases, runs rounds. Needs the extra ``[server]``."""
