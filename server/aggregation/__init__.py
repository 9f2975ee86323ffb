"""From the updates of a round to the next adapter: rules, weights, families, server optimisers."""
