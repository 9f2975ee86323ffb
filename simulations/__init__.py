"""Fleets on one machine: real client and server code on Flower's engine. Needs the extra ``[simulation]``."""
