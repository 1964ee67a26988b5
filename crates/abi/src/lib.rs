//! Layouts of every map key, map value and event that podwire's kernel programs and user space share
