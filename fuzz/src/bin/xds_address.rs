//! Workloads and services from the control plane, up to the view they make.
#![no_main]

use ambit_model::View;
use ambit_model::update::{Change, apply};
use ambit_proto::istio::workload::{Address, address::Type};
use ambit_xds::decode;
use prost::Message;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(address) = Address::decode(bytes) else {
        return;
    };
    let (change, name) = match address.r#type {
        Some(Type::Workload(message)) => match decode::workload(message) {
            Ok(workload) => (Change::UpsertWorkload(workload.clone()), workload.uid),
            Err(_) => return,
        },
        Some(Type::Service(message)) => match decode::service(message) {
            Ok(service) => {
                let name = service.key.to_string().into();
                (Change::UpsertService(service), name)
            }
            Err(_) => return,
        },
        None => return,
    };
    let view = apply(&View::default(), [change.clone()]);
    assert_eq!(apply(&view, [change]), view);
    assert_eq!(apply(&view, [Change::RemoveAddress(name)]), View::default());
});
