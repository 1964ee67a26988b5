//! Blocking NETLINK_ROUTE: many requests in one send, deadlines, extended acks, torn-dump retry
