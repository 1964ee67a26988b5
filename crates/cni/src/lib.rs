//! The Container Network Interface protocol, every version from 0.1.0 to 1.1.0
