//! DNS: the query of a pod, and what a server says to it.
#![no_main]

use std::time::Duration;

use ambit_dns::Transport;
use ambit_dns::answer::answer;
use ambit_dns::cache::{Cache, Limits, Place};
use ambit_dns::lookup::Scope;
use ambit_dns::query::Query;
use ambit_dns::reply;
use ambit_model::service::{Service, ServiceKey};
use ambit_model::update::{Change, apply};
use ambit_model::{View, address::Vip};

fn mesh() -> View {
    let services = ["a.a.svc.cluster.local", "*.b", "a.c"].map(|host| Service {
        vips: (1..40)
            .map(|n| Vip::single("".into(), [10, 0, 0, n].into()))
            .collect(),
        ..Service::new(ServiceKey::new("a", host))
    });
    apply(&View::default(), services.map(Change::UpsertService))
}

// The first byte says where the query ends, the second how much later the answer is asked for again.
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let [length, seconds, rest @ ..] = input else {
        return;
    };
    let (asked, said) = rest.split_at(rest.len().min(usize::from(*length)));
    let seconds = *seconds;
    let query = match Query::read(asked) {
        Ok(query) => query,
        Err(fault) => {
            assert_eq!(fault.answer(asked).is_some(), asked.len() >= 12);
            return;
        }
    };
    let search = ["c".to_owned(), "a.svc.cluster.local".to_owned()];
    let scope = Scope {
        namespace: "a",
        network: "",
        domain: "cluster.local",
        search: Some(&search),
        preferred_namespace: "",
        ipv6: true,
    };
    thread_local! { static MESH: View = mesh(); }
    MESH.with(|view| {
        for transport in [Transport::Udp, Transport::Tcp] {
            let told = answer(view, &scope, &query, transport, &mut || 4);
            if let Some(told) = told {
                assert!(told.bytes.len() <= query.limit(transport));
                assert!(reply::is_answer(&query, query.id(), &told.bytes));
            }
        }
    });
    // The server repeats the question, or says anything at all.
    let mut repeated = asked[..12 + query.question().len()].to_vec();
    repeated[2] |= 0x80;
    repeated.extend_from_slice(said);
    for said in [said, repeated.as_slice()] {
        let mut cache = Cache::new(Limits {
            entries: 2,
            bytes: 4096,
        });
        let _ = reply::is_answer(&query, query.id(), said);
        cache.put(Place(1), &query, said, Duration::ZERO);
        let holds = reply::lifetime(&query, said);
        let later = Duration::from_secs(seconds.into());
        let out = cache.get(Place(1), &query, later);
        assert!(out.is_none() || holds.is_some_and(|holds| holds > seconds.into()));
        if let Some(out) = out {
            assert_eq!(out.len(), said.len());
            assert!(reply::is_answer(&query, query.id(), &out));
        }
        let limit = query.limit(Transport::Udp);
        assert!(reply::fit(said.to_vec(), limit).len() <= limit.max(12));
    }
});
