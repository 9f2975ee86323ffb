"""The gateway: devices without Flower take part in a fleet over gRPC, and Flower sees one SuperNode."""
