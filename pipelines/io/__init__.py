"""Files wherever they lie: local disks, object stores, the web, archives."""
