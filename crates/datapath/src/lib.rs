//! podwire's eBPF object, its pins and its maps as typed rows
