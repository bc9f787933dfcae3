"""Client protocols without I/O: bytes in, commands out, frames back."""
