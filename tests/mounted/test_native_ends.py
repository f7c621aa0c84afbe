"""How native mounts end together with the daemon, and who may have them."""
