//! Tests of the choice of a chain for a CONNECT.

use std::collections::HashMap;
use std::sync::Arc;

use ambit_wire::authority::Authority;

use super::{admits, target};
use crate::plan::{Dispatch, Name, Plan, PortMap, Target, TcpChain, TunnelIn, WeightedClusters};

fn plan() -> Plan {
    let chain = TcpChain {
        name: Name::from("echo"),
        rules: Vec::new(),
        clusters: WeightedClusters::one(Name::from("echo")),
        idle_timeout: None,
        max_duration: None,
        logs: Vec::new(),
        reporter: None,
    };
    let ports = HashMap::from([
        (80, Target::Tcp(Arc::new(chain.clone()))),
        (81, Target::Refused(Name::from("bad"))),
    ]);
    let mut dispatch = Dispatch::default();
    dispatch.add_range("10.1.0.1/32".parse().unwrap(), PortMap::Listed(ports));
    dispatch.add_host(Name::from("echo.shop"), 80, Target::Tcp(Arc::new(chain)));
    Plan {
        dispatch: Arc::new(dispatch),
        ..Plan::default()
    }
}

#[test]
fn only_what_the_plan_serves_is_accepted() {
    let plan = plan();
    let cases = [
        ("10.1.0.1:80", None),
        ("[::ffff:10.1.0.1]:80", None),
        ("echo.shop:80", None),
        ("10.1.0.1:81", Some(503)),
        ("10.1.0.1:82", Some(404)),
        ("10.1.0.2:80", Some(404)),
        ("127.0.0.1:15000", Some(404)),
        ("echo.shop:15000", Some(404)),
        ("other.shop:80", Some(404)),
    ];
    for (authority, wanted) in cases {
        let authority = Authority::parse(authority.as_bytes()).unwrap();
        let got = target(&plan, &authority)
            .err()
            .map(|(status, _)| status.as_u16());
        assert_eq!(got, wanted, "{authority}");
    }
}

#[test]
fn a_list_of_trust_domains_admits_those_and_no_others() {
    let tunnel = |domains: &[&str]| TunnelIn {
        trust_domains: domains.iter().map(|domain| Name::from(*domain)).collect(),
        ..TunnelIn::default()
    };
    assert!(admits(&tunnel(&["a", "b"]), "b"));
    assert!(!admits(&tunnel(&["a", "b"]), "c"));
    // TLS has then admitted our own only.
    assert!(admits(&tunnel(&[]), "own"));
}
