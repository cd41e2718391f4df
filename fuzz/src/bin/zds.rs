//! Packets between node agent and node proxy.
#![no_main]

use ambit_proto::zds::{WorkloadRequest, WorkloadResponse, ZdsHello};
use prost::Message;

fn round_trip<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        assert_eq!(M::decode(&*message.encode_to_vec()), Ok(message));
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    round_trip::<ZdsHello>(bytes);
    round_trip::<WorkloadRequest>(bytes);
    round_trip::<WorkloadResponse>(bytes);
});
