"""The only place that imports Ray: adapters that carry the mathematics onto a cluster, none of their own."""
