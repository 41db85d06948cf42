//! Cluster state store: one trait; etcd, an embedded single-node store that serves the etcd v3 API, and an in-memory one.
