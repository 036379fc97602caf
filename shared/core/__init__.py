"""The pure core: values in, values out. Opens nothing, sleeps never, reads no clock and no environment."""
