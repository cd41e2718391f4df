//! Objects to resources, and the certificate authority
