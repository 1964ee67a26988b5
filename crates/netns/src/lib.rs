//! Network namespaces, veth pairs born in place, per-namespace sysctls
