"""The speed of pyfrp's pair beside the official pair and beside two plain nginx hops."""
