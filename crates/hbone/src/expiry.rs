//! When a tunnel's peer is no longer who it proved to be.
//!
//! A connection that is open stays open: it was admitted when the proof held, and to cut it would end
//! whatever lives longer than a certificate, however well certificates are renewed. But nothing new
//! is admitted on an old proof: a tunnel takes no new streams once its peer's certificate has expired.

use std::time::{Duration, SystemTime};

use ambit_tls::Peer;
use tokio::time::Instant;

/// A certificate that is good for longer counts as good for this long: far more than a tunnel lives,
/// and well within what the timer can hold.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// The moment, on the runtime's clock, at which the peer's certificate expires. A wall clock that is
/// set later does not move it.
pub(crate) fn of(peer: &Peer) -> Instant {
    let left = peer.not_after().duration_since(SystemTime::now());
    Instant::now() + left.unwrap_or_default().min(LONGEST)
}
