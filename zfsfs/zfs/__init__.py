"""The ZFS driver: libzfs_core and detached mounts."""
