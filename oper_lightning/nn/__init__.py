"""Networks, per-transition losses, optimiser helpers: plain torch, no idea of data or Lightning."""
