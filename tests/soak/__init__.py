"""A long life of the tunnel behind a real proxy: `make soak`."""
