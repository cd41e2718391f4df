//! Bytes and header values to and from typed values
