//! The podwire node agent: endpoints, leases, restore, API server
