//! Both directions of bytes between two streams
