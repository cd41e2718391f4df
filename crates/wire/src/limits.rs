//! Every size limit of what a peer may send, with its reason.

/// Longest authority of a CONNECT: a host name of [`HOST_MAX`] and `:65535`.
pub const AUTHORITY_MAX: usize = HOST_MAX + 6;

/// Longest host name (RFC 1035, section 2.3.4, as text without the final dot).
pub const HOST_MAX: usize = 253;

/// Longest `baggage` value that is read: what W3C Baggage, section 4.2, requires to be carried.
pub const BAGGAGE_MAX: usize = 8192;

/// Most list members of a `baggage` value that are read: 64, what W3C Baggage, section 4.2, requires.
pub const BAGGAGE_MEMBERS_MAX: usize = 64;

/// Longest `forwarded` value that is read: two addresses or names with their keys take less than half of it.
pub const FORWARDED_MAX: usize = 1024;

/// Longest PROXY version 2 header that is read, with its fixed 16 bytes. An identity has at most 2048 bytes (SPIFFE-ID, section
/// 2.3); the rest leaves room for what load balancers add.
pub const PROXY_V2_MAX: usize = 4096;

/// Longest packet of the conversation with the node agent. Istio's two programs use this size too.
pub const ZDS_PACKET_MAX: usize = 1024;

/// Longest error text in an acknowledgement to the node agent: the packet, less the framing of two nested messages.
pub const ZDS_ERROR_MAX: usize = ZDS_PACKET_MAX - 16;
