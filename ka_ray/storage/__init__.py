"""Files that may be local or at a URI: atomic writes, and copies that each node caches."""
