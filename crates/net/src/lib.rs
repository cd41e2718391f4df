//! Named system calls: sockets, namespaces, descriptors; no policy
