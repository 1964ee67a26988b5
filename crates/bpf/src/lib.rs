//! Loads, attaches, pins and test-runs eBPF programs; typed maps with batch operations and in-memory twins for tests
