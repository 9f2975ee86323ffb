"""The device agent: one process that drafts, learns and serves programs of its device over gRPC."""
