//! Nodes and pods as namespaces, for podwire's tests, benchmarks and demo
