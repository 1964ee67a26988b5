//! An IP address allocator: dual-stack, cool-down before reuse, reservations, leases that expire
