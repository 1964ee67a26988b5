//! Addresses, routes, rules and neighbours as desired state: plan, then apply
