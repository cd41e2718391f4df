//! Policies from the control plane, up to the decision.
//!
//! The first bytes are the connection, the rest is the message.
#![no_main]

use ambit_fuzz::Connection;
use ambit_model::authorize::{authorize, explain, rehearse};
use ambit_model::policy::Scope;
use ambit_model::update::{Change, apply};
use ambit_model::workload::Workload;
use ambit_model::{Identity, View};
use ambit_proto::istio::security::Authorization;
use ambit_proto::type_url;
use ambit_xds::{Resource, decode};
use bytes::Bytes;
use libfuzzer_sys::arbitrary::Unstructured;
use prost::Message;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (head, message) = bytes.split_at(bytes.len().min(16));
    let Ok(connection) = Connection::new(&mut Unstructured::new(head)) else {
        return;
    };
    let payload = Bytes::copy_from_slice(message);
    let Ok(message) = Authorization::decode(message) else {
        return;
    };
    let resource = Resource {
        name: format!("{}/{}", message.namespace, message.name).into(),
        version: String::new(),
        payload,
    };
    let Ok(Change::UpsertPolicy(mut policy)) = decode::change(type_url::AUTHORIZATION, &resource)
    else {
        return;
    };
    let closed = !policy.not_understood.is_empty() && !policy.dry_run;
    // So that it applies to the one workload there is.
    policy.scope = Scope::Global;
    let key = policy.key.to_string();
    let view = apply(&View::default(), [Change::UpsertPolicy(policy)]);
    let Ok(identity) = Identity::new("td", "a", "b") else {
        return;
    };
    let workload = Workload::new("w".into(), "w".into(), identity);
    let rules = view.policies_for(&workload);
    let verdict = authorize(&rules, &connection.attributes());
    let explained = explain(&rules, &connection.attributes());
    assert_eq!(explained.allowed, verdict.allowed());
    assert!(!(closed && verdict.allowed()), "a policy in part");
    let _ = rehearse(&rules, &connection.attributes());
    // Keys with a slash in the namespace cannot be told from others by name; istiod makes none.
    if key.matches('/').count() == 1 {
        assert_eq!(
            apply(&view, [Change::RemovePolicy(key.into())]),
            View::default()
        );
    }
});
