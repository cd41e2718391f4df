//! A relay's bytes as counters that move while the connection lives.

use std::cell::Cell;

use ambit_relay::Meter;

use crate::metrics::Handle;
use crate::traffic::Tcp;

/// Counts one connection: into its label set at once, and for itself, for the log at its end.
///
/// Istio's metrics take the server's side: what the client sends is `received`.
#[derive(Debug)]
pub struct TcpMeter {
    set: Handle<Tcp>,
    sent: Cell<u64>,
    received: Cell<u64>,
}

impl TcpMeter {
    /// Counts the connection as opened.
    pub fn open(set: Handle<Tcp>) -> Self {
        set.opened.inc();
        Self {
            set,
            sent: Cell::new(0),
            received: Cell::new(0),
        }
    }

    /// Bytes from the client to the server so far.
    pub fn sent_by_client(&self) -> u64 {
        self.sent.get()
    }

    /// Bytes from the server to the client so far.
    pub fn sent_by_server(&self) -> u64 {
        self.received.get()
    }
}

impl Meter for TcpMeter {
    fn sent(&self, bytes: u64) {
        self.set.received.add(bytes);
        self.sent.set(self.sent.get() + bytes);
    }

    fn received(&self, bytes: u64) {
        self.set.sent.add(bytes);
        self.received.set(self.received.get() + bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Registry;
    use crate::traffic::Traffic;

    #[test]
    fn counters_move_during_the_connection_and_take_the_server_s_side() {
        let family = Registry::default().family::<Tcp>();
        let set = family.resolve(|labels| Traffic::default().write(labels));
        let meter = TcpMeter::open(set.clone());
        meter.sent(11);
        meter.received(20);
        meter.received(2);
        assert_eq!(
            (
                set.opened.value(),
                set.received.value(),
                set.sent.value(),
                set.closed.value()
            ),
            (1, 11, 22, 0)
        );
        assert_eq!((meter.sent_by_client(), meter.sent_by_server()), (11, 22));
    }
}
